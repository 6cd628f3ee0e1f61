"""The command line: the one place where msrnn meets converters."""

import argparse
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cell import Cell
from .compare import continue_prompt, full_nbytes
from .decode import stream
from .error import Error, check_device
from .models import Llama
from .reduction import Reduction, parse_reduction
from .retention import retention

if TYPE_CHECKING:
    import tokenizers

EXAMPLES = """examples:
  msrnn info ~/models/SmolLM2-135M-Instruct
  msrnn generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The sea was" --reduction tova:128 --max-new-tokens 200
  msrnn generate model.gguf --prompt-file story.txt --reduction sinks:512:4 --sample --temperature 0.8 --seed 1
  msrnn compare model.gguf --prompt-file story.txt --reduction full --reduction tova:48 --picture kept.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --reduction h2o:64 --out kept.png

MODEL is a hub id (owner/name), a folder (Hugging Face's or the library's own) or one .gguf file.
A reduction bounds the state H: full, window:SIZE, sinks:SIZE:FIRST, h2o:SIZE, h2o-layer:SIZE, tova:SIZE, tova-head:SIZE;
SIZE is the number of tokens carried from step to step. Without one, H is the family's own (Mistral v0.1: its window)."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, 1 after a one-sentence refusal, 130 after ctrl-C."""
    if sys.stdout is None:  # closed by the caller: the words go nowhere
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no dashes gets question marks
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except Error as refused:
        print(f"msrnn: {refused}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone; leave without a word, and without python's own
        _silence()
        return 1
    except OSError as wrong:
        _silence()
        print(f"msrnn: cannot write the output ({wrong.strerror})", file=sys.stderr)
        return 1
    return 0


def _silence() -> None:
    """Leave nothing to be flushed to a place that takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="msrnn",
        description="Pretrained LLMs as multi-state RNNs with a bounded state.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("model", metavar="MODEL", help="a hub id (owner/name), a folder, or one .gguf file")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")

    cell = argparse.ArgumentParser(add_help=False)
    cell.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the parameters (default: the file's)")
    cell.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    prompt = cell.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to read")
    prompt.add_argument("--prompt-file", metavar="FILE", type=Path, help="a file with the text to read (UTF-8)")
    prompt.add_argument("--stdin", action="store_true", help="take the text from standard input")

    generate = commands.add_parser("generate", parents=[model, cell], help="continue a prompt, text as it streams")
    generate.add_argument("--reduction", type=_reduction, help="what bounds H (default: the family's own)")
    generate.add_argument(
        "--max-new-tokens", metavar="N", type=_count, default=128, help="at most so many tokens (default: 128)"
    )
    generate.add_argument("--sample", action="store_true", help="draw tokens; otherwise the likeliest is taken")
    generate.add_argument("--temperature", type=float, help="flattens (> 1) or sharpens (< 1) what is drawn from")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest")
    generate.add_argument("--top-p", type=float, metavar="P", help="draw among the fewest that together reach P")
    generate.add_argument("--seed", type=_count, help="makes the drawing repeatable")
    generate.add_argument("--ignore-eos", action="store_true", help="go on past the model's end-of-text tokens")
    generate.set_defaults(run=_generate)

    compare = commands.add_parser("compare", parents=[model, cell], help="one prompt under several operators, side by side")
    compare.add_argument("--reduction", type=_reduction, action="append", required=True, help="may be given several times")
    compare.add_argument("--max-new-tokens", metavar="N", type=_count, default=64, help="tokens under each (default: 64)")
    compare.add_argument("--picture", type=Path, metavar="FILE", help="also draw what each step kept")
    compare.set_defaults(run=_compare)

    kept = commands.add_parser("retention", parents=[model, cell], help="draw which positions each step of a text kept")
    kept.add_argument("--reduction", type=_reduction, action="append", required=True, help="one panel each")
    kept.add_argument("--max-tokens", metavar="N", type=_count, default=256, help="read at most so many tokens (default: 256)")
    kept.add_argument("--layer", type=int, help="of this layer only, negative from the end (default: the mean over all)")
    kept.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")
    kept.set_defaults(run=_retention)

    info = commands.add_parser("info", parents=[model], help="what a model is, and what its state costs")
    info.set_defaults(run=_info)
    return parser


def _generate(args: argparse.Namespace) -> None:
    text = _text(args)
    shaping = {"--temperature": args.temperature, "--top-k": args.top_k, "--top-p": args.top_p, "--seed": args.seed}
    if not args.sample and (given := [name for name, value in shaping.items() if value is not None]):
        raise Error(f"{given[0]} is about drawing tokens; it needs --sample")
    cell, tokenizer = _load(args)
    from tokenizers.decoders import DecodeStream

    state = cell.initial_state(1, args.reduction)
    tokens, generator = _encode(tokenizer, text, args), torch.Generator(args.device)
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)
    decoder, count, start = DecodeStream(skip_special_tokens=True), 0, time.perf_counter()
    new = stream(
        cell,
        tokens,
        state,
        max_new_tokens=args.max_new_tokens,
        do_sample=args.sample,
        temperature=1.0 if args.temperature is None else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        eos_token_id=None if args.ignore_eos else cell.config.eos_token_ids,
        generator=generator,
    )
    read = time.perf_counter()
    try:
        for token, state in new:  # noqa: B007  (the last state is reported)
            count += 1
            print(decoder.step(tokenizer, int(token)) or "", end="", flush=True)
    finally:
        print()
        speed = count / max(time.perf_counter() - read, 1e-9)
        spent = f"{tokens.shape[1]} tokens read in {read - start:.1f} s, {count} written at {speed:.1f} tokens/s"
        print(f"[{spent}; {_held(state.nbytes, full_nbytes(state))}]", file=sys.stderr)


def _compare(args: argparse.Namespace) -> None:
    text = _text(args)
    _once(args.reduction)
    if args.picture:
        _check_picture(args.picture)
    cell, tokenizer = _load(args)
    prompt = _encode(tokenizer, text, args)[0].tolist()
    print(f"{args.model}: {len(prompt)} prompt tokens, up to {args.max_new_tokens} new\n\n{text}\n")
    panels: dict[str, Tensor] = {}
    for reduction in args.reduction:
        print(f"── {reduction} {'─' * (76 - len(str(reduction)))}")
        run = continue_prompt(cell, tokenizer, prompt, reduction, args.max_new_tokens)
        print(f"\n   {run.tokens_per_second:.1f} tokens/s; {_held(run.nbytes, run.full_nbytes)}\n")
        panels[str(reduction)] = run.kept
    if args.picture:
        from .plot import draw_retention

        draw_retention(panels, args.picture, prompt=len(prompt), title="what H held after each step")
        print(f"what each step kept: {args.picture}")


def _retention(args: argparse.Namespace) -> None:
    text = _text(args)
    _once(args.reduction)
    _check_picture(args.out)
    cell, tokenizer = _load(args)
    layers = cell.config.n_layers
    if args.layer is not None and not -layers <= args.layer < layers:
        raise Error(f"--layer is {args.layer}; the model has layers 0 to {layers - 1}")
    tokens = _encode(tokenizer, text, args)[:, : args.max_tokens]
    panels = {}
    for reduction in args.reduction:
        kept = retention(cell, tokens, reduction, progress=True)[0]  # (L, T, T)
        panels[str(reduction)] = kept.mean(0) if args.layer is None else kept[args.layer]
        share = panels[str(reduction)][-1].sum() / tokens.shape[1]
        print(f"{reduction!s:16} holds {share:.1%} of {tokens.shape[1]} positions at the end")
    from .plot import draw_retention

    title = "what H held after each step" + ("" if args.layer is None else f", layer {args.layer % layers}")
    draw_retention(panels, args.out, title=title)
    print(args.out)


def _info(args: argparse.Namespace) -> None:
    import converters

    config = converters.config(args.model, revision=args.revision)
    with torch.device("meta"):
        cell = Llama(config)
    parameters = sum(x.numel() for x in cell.parameters())
    rows, D = config.n_layers * config.n_kv_heads, config.head_dim
    lines = {
        "family": config.family,
        "parameters": f"{parameters / 1e6:,.1f} million",
        "layers": f"{config.n_layers} of width {config.width}, feed-forward {config.ffn_width}",
        "heads": f"{config.n_heads} query, {config.n_kv_heads} key/value, of {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,}{', head tied to the embedding' if config.tied else ''}",
        "positions": f"{config.rope}, made for {config.length:,} tokens",
        "reduction": f"{cell.default_reduction} (the family's own)",
        "ends at": ", ".join(map(str, config.eos_token_ids)) or "no token known",
        "a token in H": f"{rows * (4 * D + 8):,} bytes in 16 bits, {rows * (8 * D + 8):,} in float32",
    }
    print(args.model, *(f"  {name:14}{value}" for name, value in lines.items()), sep="\n")


def _load(args: argparse.Namespace) -> tuple[Cell, "tokenizers.Tokenizer"]:
    import converters

    check_device(args.device)
    if args.device == "meta":
        raise Error("--device is 'meta'; nothing is computed there")
    tokenizer = converters.tokenizer(args.model, revision=args.revision)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return converters.load(args.model, dtype=dtype, device=args.device, revision=args.revision), tokenizer


def _text(args: argparse.Namespace) -> str:
    if args.stdin and sys.stdin is None:
        raise Error("cannot read the prompt (standard input is closed)")
    try:
        text = args.prompt if args.prompt is not None else None if args.stdin else args.prompt_file.read_text("utf-8")
        text = sys.stdin.read() if text is None else text
        text.encode()  # bytes that were no text come in as lone surrogates
    except (OSError, UnicodeError) as wrong:
        raise Error(f"cannot read the prompt ({wrong})") from None
    if not text:
        raise Error("the prompt is empty")
    return text


def _encode(tokenizer: "tokenizers.Tokenizer", text: str, args: argparse.Namespace) -> Tensor:
    return torch.tensor([tokenizer.encode(text).ids], device=args.device)


def _check_picture(path: Path) -> None:
    from .plot import check_picture

    check_picture(path)


def _once(reductions: list[Reduction]) -> None:
    for i, reduction in enumerate(reductions):
        if reduction in reductions[:i]:
            raise Error(f"--reduction {reduction} is given twice; expected each once")


def _reduction(text: str) -> Reduction:
    try:
        return parse_reduction(text)
    except Error as refused:
        raise argparse.ArgumentTypeError(str(refused)) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _held(nbytes: int, full: int) -> str:
    unbounded = f"; unbounded it would hold {full / 1e6:.2f} MB" if nbytes < full else ""
    return f"H holds {nbytes / 1e6:.2f} MB{unbounded}"


if __name__ == "__main__":
    sys.exit(main())

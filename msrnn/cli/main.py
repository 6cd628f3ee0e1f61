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

from ..cell.cell import Cell
from ..chat.conversation import Chat
from ..decoding.methods import write
from ..diagnostics.comparison import continue_prompt, full_nbytes
from ..diagnostics.retention import retention
from ..diagnostics.soak import soak
from ..errors import Error
from ..eval.inputs import Source
from ..text.detokenizer import Spelling
from ..text.stream_printer import Live
from . import eval as evaluation
from . import train as training
from .bench import run as bench
from .info import told
from .options import check_device, choice, once, prompt, read_text
from .parser import parser

if TYPE_CHECKING:
    import tokenizers


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, 1 after a one-sentence refusal, 130 after ctrl-C."""
    if sys.stdout is None:  # closed by the caller: the words go nowhere
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no dashes gets question marks
    args = parser(evaluation.add_arguments, training.add_arguments).parse_args(argv)
    try:
        COMMANDS[args.command](args)
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


def _generate(args: argparse.Namespace) -> None:
    text = prompt(args)
    how = choice(args)
    cell, tokenizer = _load(args)
    state = cell.initial_state(1, args.reduction)
    tokens = _encode(tokenizer, text, args)
    spelt, live, start = Spelling(tokenizer), Live(), time.perf_counter()
    new = write(
        cell,
        tokens,
        state,
        args.decode,
        max_new_tokens=args.max_new_tokens,
        eos_token_id=None if args.ignore_eos else cell.config.eos_token_ids,
        **how,
    )
    read = time.perf_counter()
    try:
        for step in new:
            state = step.state
            live.show("".join(map(spelt, step.tokens)), len(step.tokens))
    finally:
        print()
        speed = live.written / max(time.perf_counter() - read, 1e-9)
        spent = f"{tokens.shape[1]} tokens read in {read - start:.1f} s, {live.written} written at {speed:.1f} tokens/s"
        said = filter(None, (spent, live.summary(), _held(state.nbytes, full_nbytes(state))))
        print(f"[{'; '.join(said)}]", file=sys.stderr)


def _compare(args: argparse.Namespace) -> None:
    text = prompt(args)
    once(args.reduction)
    if args.picture:
        _check_picture(args.picture)
    cell, tokenizer = _load(args)
    ids = _encode(tokenizer, text, args)[0].tolist()
    print(f"{args.model}: {len(ids)} prompt tokens, up to {args.max_new_tokens} new\n\n{text}\n")
    panels: dict[str, Tensor] = {}
    for reduction in args.reduction:
        print(f"── {reduction} {'─' * (76 - len(str(reduction)))}")
        run = continue_prompt(cell, tokenizer, ids, reduction, args.max_new_tokens)
        print(f"\n   {run.tokens_per_second:.1f} tokens/s; {_held(run.nbytes, run.full_nbytes)}\n")
        panels[str(reduction)] = run.kept
    if args.picture:
        from ..reporting.figures import draw_retention

        draw_retention(panels, args.picture, prompt=len(ids), title="what H held after each step")
        print(f"what each step kept: {args.picture}")


def _retention(args: argparse.Namespace) -> None:
    text = prompt(args)
    once(args.reduction)
    _check_picture(args.out)
    cell, tokenizer = _load(args)
    layers = cell.config.n_layers
    if args.layer is not None and not -layers <= args.layer < layers:
        raise Error(f"--layer is {args.layer}; the model has layers 0 to {layers - 1}")
    tokens = _encode(tokenizer, text, args)[:, : args.max_tokens]
    panels = {}
    for reduction in args.reduction:
        kept = retention(cell, tokens, reduction)[0]  # (L, T, T)
        panels[str(reduction)] = kept.mean(0) if args.layer is None else kept[args.layer]
        share = panels[str(reduction)][-1].sum() / tokens.shape[1]
        print(f"{reduction!s:16} holds {share:.1%} of {tokens.shape[1]} positions at the end")
    from ..reporting.figures import draw_retention

    title = "what H held after each step" + ("" if args.layer is None else f", layer {args.layer % layers}")
    draw_retention(panels, args.out, title=title)
    print(args.out)


def _soak(args: argparse.Namespace) -> None:
    _check_picture(args.out.parent / "soak.png")  # beside the folder: nothing is left of a run that is refused
    cell, text = _soak_text(args)
    same = {"text": text, "seed": args.seed, "interval": args.interval}
    try:
        rows = soak(cell, args.out, args.tokens, args.reduction, **same, progress=True)
    except KeyboardInterrupt:
        print(f"\nthe same command goes on from the state saved last in {args.out}", file=sys.stderr)
        raise
    from ..reporting.figures import draw_soak

    first, last, under = rows[0], rows[-1], args.reduction or cell.default_reduction
    draw_soak(rows, args.out / "soak.png", title=f"{Path(args.model).name} under {under}")
    source = "random ids" if text is None else f"{args.text}, {len(text):,} tokens, {last.read / len(text):.2f} times"
    print(f"{args.model} under {under}: {last.read:,} tokens read ({source})\n")
    print(f"{'':18}{'first':>10}{'last':>10}{'ratio':>10}   (of {len(rows)} intervals)")
    figures = [("fold, ms/token", "fold_ms", 1), ("step, ms/token", "step_ms", 1), ("H, MB", "nbytes", 1e6)]
    for name, field, unit in [*figures, ("process, MB", "resident", 1e6)]:
        one, other = getattr(first, field) / unit, getattr(last, field) / unit
        print(f"{name:18}{one:10.2f}{other:10.2f}{other / one:10.3f}")
    far, ties = max(row.difference for row in rows), sum(row.near_ties for row in rows)
    print(f"\nfold and step met {len(rows)} times: mean difference of the logits {far:.1e} at most, {ties} near-ties")
    print(args.out / "soak.png")


def _soak_text(args: argparse.Namespace) -> tuple[Cell, Tensor | None]:
    if args.text is None:
        return _cell(args), None
    words = read_text(args.text)
    if not words:
        raise Error(f"{args.text} is empty")
    cell, tokenizer = _load(args)
    return cell, _encode(tokenizer, words, args)[0]


def _chat(args: argparse.Namespace) -> None:
    from ..chat.repl import talk

    if sys.stdin is None:
        raise Error("nothing can be said (standard input is closed)")
    sys.stdin.reconfigure(errors="replace") if isinstance(sys.stdin, io.TextIOWrapper) else None
    how = choice(args)
    cell, tokenizer = _load(args)
    facts = {"reduction": args.reduction, "system": args.system, "decode": args.decode}
    talk(Chat(cell, tokenizer, max_new_tokens=args.max_new_tokens, **facts, **how))


def _bench(args: argparse.Namespace) -> None:
    import converters

    check_device(args)
    bench(args, converters)


def _info(args: argparse.Namespace) -> None:
    import converters

    print(args.model, *told(converters.config(args.model, revision=args.revision)), sep="\n")


def _eval(args: argparse.Namespace) -> None:
    evaluation.run(args, Source(lambda: _tokenizer(args), lambda: _cell(args), progress=True))


def _load(args: argparse.Namespace) -> tuple[Cell, "tokenizers.Tokenizer"]:
    tokenizer = _tokenizer(args)
    return _cell(args), tokenizer


def _tokenizer(args: argparse.Namespace) -> "tokenizers.Tokenizer":
    import converters

    check_device(args)
    return converters.tokenizer(args.model, revision=args.revision)


def _cell(args: argparse.Namespace) -> Cell:
    import converters

    check_device(args)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return converters.load(args.model, dtype=dtype, device=args.device, revision=args.revision)


def _encode(tokenizer: "tokenizers.Tokenizer", text: str, args: argparse.Namespace) -> Tensor:
    return torch.tensor([tokenizer.encode(text).ids], device=args.device)


def _check_picture(path: Path) -> None:
    from ..reporting.figures import check_picture

    check_picture(path)


def _held(nbytes: int, full: int) -> str:
    unbounded = f"; unbounded it would hold {full / 1e6:.2f} MB" if nbytes < full else ""
    return f"H holds {nbytes / 1e6:.2f} MB{unbounded}"


COMMANDS = {
    "generate": _generate,
    "chat": _chat,
    "compare": _compare,
    "retention": _retention,
    "soak": _soak,
    "train": training.run,
    "bench": _bench,
    "eval": _eval,
    "info": _info,
}

if __name__ == "__main__":
    sys.exit(main())

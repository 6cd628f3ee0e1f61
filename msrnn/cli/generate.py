"""Continue a prompt and print the text as it is generated.

With --state FILE a later command continues the text: without a prompt from its last token, with a prompt after it. msrnn read
writes such a file too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..argtypes import add_kv_dtype_argument, positive_int
from ..cell.cell import Cell
from ..chat.rendering import Renderer
from ..decoding.methods import stream_by_method
from ..diagnostics.state_memory import memory_summary
from ..errors import Error
from ..storage.output_paths import check_output_file
from ..text.stop_strings import StreamedText
from ..text.stream_printer import StreamPrinter
from .loading import load_model_for_steps
from .options import (
    add_model_arguments,
    add_prompt_arguments,
    add_reduction_argument,
    add_sampling_arguments,
    add_stop_argument,
    has_prompt,
    read_prompt,
    sampling_settings,
)
from .ranks import agreed_interrupt
from .state_file import SavedText, new_text, read_text_state

if TYPE_CHECKING:
    import tokenizers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn generate``."""
    add_model_arguments(parser)
    add_reduction_argument(parser)
    add_kv_dtype_argument(parser)
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=128, help="generate at most N tokens (default: 128)"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="continue after end-of-sequence tokens")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user message, in the model's chat template")
    parser.add_argument(
        "--state",
        metavar="FILE",
        type=Path,
        help="continue the text of this file if it exists, and write the text's state to it; without a prompt the text goes on "
        "from its last token",
    )
    parser.add_argument(
        "--keep-state", action="store_true", help="read the file of --state, which has to exist, and do not write to it"
    )
    add_prompt_arguments(parser, required=False)
    add_sampling_arguments(parser)
    add_stop_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Generate; the text goes to standard output, a summary to standard error, also after ctrl-C."""
    text = read_prompt(args) if has_prompt(args) else None
    continues = _continues(args, text)
    sampling = sampling_settings(args)
    cell, tokenizer = load_model_for_steps(args)
    saved = read_text_state(args, cell, needs_logits=text is None) if continues else new_text(args, cell)
    new, ends = list[int](), cell.config.eos_token_ids
    if text is not None:
        new, ends = _encode(args, cell, tokenizer, text, continues)
    ids, start = [*saved.ids, *new], time.perf_counter()
    shown, printer = StreamedText(tokenizer, args.stop, ids), StreamPrinter()
    generated = stream_by_method(
        cell,
        torch.tensor([new], device=args.device) if text is not None else None,
        saved.state,
        args.decode,
        logits=saved.logits,
        max_new_tokens=args.max_new_tokens,
        eos_token_id=None if args.ignore_eos else ends,
        stop=args.stop,
        tokenizer=tokenizer,
        **sampling,
    )
    prompt_read = time.perf_counter()
    try:
        with agreed_interrupt(args.launch) as check_interrupt:
            for step in generated:
                saved = SavedText(step.state, step.logits, [*ids, *step.tokens])
                ids += step.tokens
                printer.show("".join(map(shown, step.tokens)), len(step.tokens))
                check_interrupt()
    finally:
        print(shown.flush())
        n, speed = printer.n_tokens, printer.n_tokens / max(time.perf_counter() - prompt_read, 1e-9)
        counts = f"{len(new)} prompt tokens read in {prompt_read - start:.1f} s, {n} generated at {speed:.1f} tokens/s"
        ended = "" if n or text is not None else "the text of the file has ended"
        memory = memory_summary(saved.state, cell) + (f", on each of {args.launch.size} ranks" if args.launch.size > 1 else "")
        parts = (counts, ended, printer.summary(), memory)
        print(f"[{'; '.join(filter(None, parts))}]", file=sys.stderr)
        if args.state is not None and n and not args.keep_state:
            saved.save(args.state)


def _continues(args: argparse.Namespace, text: str | None) -> bool:
    """Return True if the file of ``--state`` exists.

    Raises:
        Error: there is neither a prompt nor such a file, ``--chat`` would not start a text, the file cannot be written, or with
            ``--keep-state`` it does not exist.
    """
    continues = args.state is not None and args.state.exists()
    if args.keep_state and not continues:
        found = "not given" if args.state is None else f"{args.state}, which does not exist"
        raise Error(f"--keep-state continues a text, but --state is {found}; expected a file of msrnn read")
    if args.state is not None and not args.keep_state:
        check_output_file(args.state)
    if text is None and not continues:
        missing = f"; {args.state} does not exist" if args.state is not None else ""
        raise Error(f"there is no prompt{missing}; expected --prompt, --prompt-file or --stdin")
    if args.chat and (text is None or continues):
        found = "there is no prompt" if text is None else f"{args.state} already holds a text"
        raise Error(f"--chat starts a conversation, but {found}; omit --chat, or use msrnn chat for several messages")
    return continues


def _encode(
    args: argparse.Namespace, cell: Cell, tokenizer: "tokenizers.Tokenizer", text: str, continues: bool
) -> tuple[list[int], Sequence[int]]:
    """Return the ids of the prompt, and the ids that end the text."""
    if args.chat:
        renderer = Renderer(cell, tokenizer)
        return list(renderer.prompt_ids([{"role": "user", "content": text}])), renderer.end_ids
    return tokenizer.encode(text, add_special_tokens=not continues).ids, cell.config.eos_token_ids

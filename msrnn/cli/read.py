"""Read a text once and save its state, so that several commands can continue from it.

msrnn generate MODEL --state FILE --keep-state then asks about the text without reading it again. If the file exists, the new
text continues that of the file.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from ..argtypes import add_kv_dtype_argument
from ..diagnostics.state_memory import memory_summary
from ..errors import Error
from ..reporting.progress import progress_bar
from ..storage.output_paths import check_output_file
from .loading import load_model
from .options import add_model_arguments, add_prompt_arguments, add_reduction_argument, read_prompt
from .state_file import SavedText, new_text, read_text_state

PART_TOKENS = 512
"""Number of tokens between two updates of the progress bar. The result does not depend on it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn read``."""
    add_model_arguments(parser)
    add_reduction_argument(parser)
    add_kv_dtype_argument(parser)
    parser.add_argument("--state", metavar="FILE", type=Path, required=True, help="file to write, or to continue if it exists")
    add_prompt_arguments(parser)


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """Read the text, write the file when all of it has been read, and print the file's name; a summary to standard error.

    Raises:
        Error: the text cannot be read or has no tokens, the file cannot be written, or its text cannot be continued.
    """
    text = read_prompt(args)
    check_output_file(args.state)
    continues = args.state.exists()
    cell, tokenizer = load_model(args)
    saved = read_text_state(args, cell, needs_logits=False) if continues else new_text(args, cell)
    new = tokenizer.encode(text, add_special_tokens=not continues).ids
    if not new:
        raise Error("the prompt has no tokens")
    state, logits, start = saved.state, saved.logits, time.perf_counter()
    with progress_bar(len(new), " tokens", label="reading") as bar:
        for part in torch.tensor([new], device=args.device).split(PART_TOKENS, dim=1):
            logits, state = cell(part, state, last_only=True)
            bar.update(part.shape[1])
    speed = len(new) / max(time.perf_counter() - start, 1e-9)
    SavedText(state, logits, [*saved.ids, *new]).save(args.state)
    print(args.state)
    total = int(state.clock[0])
    print(f"[{len(new)} tokens read at {speed:.0f} tokens/s, {total} in all; {memory_summary(state, cell)}]", file=sys.stderr)

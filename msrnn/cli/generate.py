"""Continue a prompt and print the text as it is generated."""

import argparse
import sys
import time

from ..argtypes import positive_int
from ..decoding.methods import stream_by_method
from ..diagnostics.state_memory import memory_summary
from ..text.detokenizer import StreamingDetokenizer
from ..text.stream_printer import StreamPrinter
from .loading import encode, load_model
from .options import (
    add_model_arguments,
    add_prompt_arguments,
    add_reduction_argument,
    add_sampling_arguments,
    read_prompt,
    sampling_settings,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn generate``."""
    add_model_arguments(parser)
    add_reduction_argument(parser)
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=128, help="generate at most N tokens (default: 128)"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="continue after end-of-sequence tokens")
    add_prompt_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Generate; the text goes to standard output, a summary to standard error, also after ctrl-C."""
    text = read_prompt(args)
    sampling = sampling_settings(args)
    cell, tokenizer = load_model(args)
    state = cell.initial_state(1, args.reduction)
    tokens = encode(tokenizer, text, args)
    detokenize, printer, start = StreamingDetokenizer(tokenizer), StreamPrinter(), time.perf_counter()
    generated = stream_by_method(
        cell,
        tokens,
        state,
        args.decode,
        max_new_tokens=args.max_new_tokens,
        eos_token_id=None if args.ignore_eos else cell.config.eos_token_ids,
        **sampling,
    )
    prompt_read = time.perf_counter()
    try:
        for step in generated:
            state = step.state
            printer.show("".join(map(detokenize, step.tokens)), len(step.tokens))
    finally:
        print()
        n, speed = printer.n_tokens, printer.n_tokens / max(time.perf_counter() - prompt_read, 1e-9)
        counts = f"{tokens.shape[1]} prompt tokens read in {prompt_read - start:.1f} s, {n} generated at {speed:.1f} tokens/s"
        summary = filter(None, (counts, printer.summary(), memory_summary(state)))
        print(f"[{'; '.join(summary)}]", file=sys.stderr)

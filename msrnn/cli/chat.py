"""Chat with a model in the terminal, with a KV cache of bounded size.

The KV cache is kept between turns: a turn reads only its new tokens. The command /help lists the commands of the chat.
"""

import argparse
import io
import sys

from ..argtypes import positive_int
from ..chat.conversation import Chat
from ..chat.repl import run_repl
from ..errors import Error
from .loading import load_model
from .options import add_model_arguments, add_reduction_argument, add_sampling_arguments, add_stop_argument, sampling_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn chat``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, default="tova:1024")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=512,
        help="generate at most N tokens per reply (default: 512)",
    )
    add_sampling_arguments(parser)
    add_stop_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Read user messages from standard input until it ends."""
    if sys.stdin is None:
        raise Error("cannot read messages (standard input is closed)")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    sampling = sampling_settings(args)
    cell, tokenizer = load_model(args)
    settings = {"reduction": args.reduction, "system": args.system, "decode": args.decode, "stop": args.stop}
    run_repl(Chat(cell, tokenizer, max_new_tokens=args.max_new_tokens, **settings, **sampling))

"""Chat with a model in the terminal, with a KV cache of bounded size.

The KV cache is kept between turns: a turn reads only its new tokens. The command /help lists the commands of the chat.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..argtypes import add_kv_dtype_argument, positive_int
from ..chat.conversation import Chat
from ..chat.repl import run_repl
from ..errors import Error
from ..storage.files import read_bytes
from .loading import load_model_for_steps
from .options import (
    add_model_arguments,
    add_reduction_argument,
    add_sampling_arguments,
    add_stop_argument,
    decode_text,
    sampling_settings,
    utf8_text,
)
from .streams import read_input_as_utf8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn chat``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, default="tova:1024")
    add_kv_dtype_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=512,
        help="generate at most N tokens per reply (default: 512)",
    )
    group = parser.add_argument_group("chat template")
    group.add_argument("--chat-template", metavar="NAME", help="name of a template, for a model with several")
    group.add_argument(
        "--template-variable",
        metavar="NAME=VALUE",
        type=template_variable,
        action="append",
        default=[],
        help="name in the template, such as enable_thinking=false; VALUE is JSON or text; may be repeated",
    )
    group.add_argument("--tools", metavar="FILE", type=Path, help="JSON file with a list of JSON schemas of tools")
    add_sampling_arguments(parser)
    add_stop_argument(parser)


def template_variable(text: str) -> tuple[str, Any]:
    """Parse ``NAME=VALUE``, as an argparse type. A value that is not JSON is text.

    Raises:
        ArgumentTypeError: there is no ``=``, or the bytes are not UTF-8.
    """
    name, sign, value = utf8_text(text).partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r:.60} has no =; expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def read_tools(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        Error: the file cannot be read, or is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Error(f"{path} is not JSON ({error})") from None


def run(args: argparse.Namespace) -> None:
    """Read user messages from standard input until it ends."""
    if sys.stdin is None:
        raise Error("cannot read messages (standard input is closed)")
    read_input_as_utf8()
    system = None if args.system is None else decode_text(args.system, "--system")
    sampling = sampling_settings(args)
    tools = None if args.tools is None else read_tools(args.tools)
    template = {"chat_template": args.chat_template, "template_variables": dict(args.template_variable), "tools": tools}
    cell, tokenizer = load_model_for_steps(args)
    settings = {
        "reduction": args.reduction,
        "kv_dtype": args.kv_dtype,
        "system": system,
        "decode": args.decode,
        "stop": args.stop,
    }
    run_repl(Chat(cell, tokenizer, max_new_tokens=args.max_new_tokens, **settings, **template, **sampling))

"""The command ``python -m converters SOURCE TARGET``: convert a checkpoint into a folder."""

import argparse
import sys
import warnings

import torch

from msrnn import Error

from . import convert


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 after an error in one sentence, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m converters", description="Convert a checkpoint into a folder.")
    parser.add_argument("source", help="a hub id (owner/name), a folder, or a .gguf file")
    parser.add_argument("target", help="the folder to write; new or empty")
    parser.add_argument("--to", choices=("msrnn", "hf"), default="msrnn", help="the library's own folder, or Hugging Face's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the source's own")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    try:
        args = parser.parse_args(argv)
        dtype = getattr(torch, args.dtype) if args.dtype else None
        with warnings.catch_warnings(record=True) as reports:  # printed as one line each
            convert(args.source, args.target, to=args.to, dtype=dtype, revision=args.revision)
        for report in reports:
            print(report.message, file=sys.stderr)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())

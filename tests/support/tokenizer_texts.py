"""Texts that tokenizers treat differently: code, prose, numbers, spaces, Chinese, unusual characters."""

import argparse
import inspect
import json
import random
import re
import textwrap

CHINESE = ("今天天气很好，我们去公园散步。", "二〇二四年三月五日，共有１２３个人！", "𠮷野家在哪里？", "「你好」，他说……")
UNUSUAL = "naïve façade 🦙🤖 ½²³ ٣٤ ﬁ e\u0301 zero\u200bwidth it's IT'S we'LL we'Llx \r\n\r\n a\t\tb  \n\n\n  x\u00a0y \u3000z"


def texts():
    """Return texts of the kinds that tokenizers treat differently; the same for each Python version."""
    rng = random.Random(0)
    code = "".join(inspect.getsource(module) for module in (argparse, json, textwrap))
    prose = "\n\n".join(inspect.getdoc(x) or "" for module in (argparse, re, random) for x in vars(module).values())
    numbers = [str(rng.randrange(10 ** rng.randrange(1, 12))) for _ in range(2000)]
    dates = [f"{rng.randrange(1900, 2030)}-{rng.randrange(13):02}-{rng.randrange(32):02}" for _ in range(500)]
    spaced = "".join(" " * rng.randrange(1, 30) + rng.choice(["7", "42", "a", "\n", "\t", "if x:", "ß"]) for _ in range(500))
    chinese = "".join(rng.choice(CHINESE) + rng.choice(["\n", "", " ", "42"]) for _ in range(1000))
    return {
        "code": code,
        "prose": prose,
        "numbers": " ".join(numbers) + ", ".join(dates),
        "spaced": spaced,
        "chinese": chinese,
        "unusual": UNUSUAL * 20,
    }


TEXTS = texts()

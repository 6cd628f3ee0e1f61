"""JSON: values, keys, the text itself."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .registry import damage, vital

STRANGE = [
    *("null", "true", "false", '""', "[]", "{}", "[null]", '{"a": 1}', '"NaN"', '"\\ud800"', '"a\\nb\\u0000"', '"../../x"'),
    *("0", "-0.0", "-1", "1", "2", "3", "0.5", "1.5", "1e-300", "1e-320", "1e300", "1e400", "-1e400", "NaN", "Infinity"),
    *("-Infinity", str(2**31), str(2**53 + 1), str(2**63), str(2**64), str(10**9), str(10**15), str(10**40), "9" * 400),
    *("9" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000, '"' + "x" * 1_000_000 + '"'),
    *("[" + "1," * 100_000 + "1]", "'x'", "01", "+1", "0x10", "--1", ",", "\x00", "// no"),
]
HERE = "@here@"


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key below ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in list(items) for place in ((value, key), *places(child))]


def rewrite(random: Random, path: Path, change: Callable[[Any, Any], str]) -> None:
    """One value of a JSON file becomes :data:`HERE`, and that the text that ``change`` gives."""
    facts = json.loads(path.read_bytes())
    inside, key = random.choice(places(facts))
    new = change(inside, key)
    path.write_text(json.dumps(facts).replace(f'"{HERE}"', new))


@damage("json")
def strange_value(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        inside[key] = HERE
        return random.choice(STRANGE)

    rewrite(random, path, change)
    return False


@damage("json")
def near_value(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        old, inside[key] = inside[key], HERE
        new: list[Any] = [[old], {"a": old}, str(old)]
        if isinstance(old, int | float):
            new += [old + 1, old * 2, -old, old / 2, float(old), old // 2]
        return json.dumps(random.choice(new))

    rewrite(random, path, change)
    return False


@damage("json")
def key_gone(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        del inside[key]
        return ""

    rewrite(random, path, change)
    return False


@damage("json")
def key_twice(random: Random, path: Path) -> bool:
    facts = json.loads(path.read_bytes())
    key = random.choice(list(facts))
    value = random.choice((json.dumps(facts[key]), random.choice(STRANGE[:12])))
    path.write_text(f"{{{json.dumps(key)}: {value}, {json.dumps(facts)[1:]}")
    return vital(path)


@damage("json")
def key_misspelt(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        if isinstance(inside, dict):
            inside[random.choice((key.upper(), key + " ", "", "../../x", "\ud800", key[:-1], "é"))] = inside.pop(key)
        return ""

    rewrite(random, path, change)
    return False


@damage("json")
def strange_whole(random: Random, path: Path) -> bool:
    path.write_text(random.choice(STRANGE))
    return vital(path)


@damage("json")
def other_encoding(random: Random, path: Path) -> bool:
    path.write_bytes(path.read_text().encode(random.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7"))))
    return False

"""Damages of JSON files: values, keys, the whole text."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .registry import damage, is_required

UNUSUAL_VALUES = [
    *("null", "true", "false", '""', "[]", "{}", "[null]", '{"a": 1}', '"NaN"', '"\\ud800"', '"a\\nb\\u0000"', '"../../x"'),
    *("0", "-0.0", "-1", "1", "2", "3", "0.5", "1.5", "1e-300", "1e-320", "1e300", "1e400", "-1e400", "NaN", "Infinity"),
    *("-Infinity", str(2**31), str(2**53 + 1), str(2**63), str(2**64), str(10**9), str(10**15), str(10**40), "9" * 400),
    *("9" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000, '"' + "x" * 1_000_000 + '"'),
    *("[" + "1," * 100_000 + "1]", "'x'", "01", "+1", "0x10", "--1", ",", "\x00", "// no"),
]
PLACEHOLDER = "@placeholder@"


def locations(value: Any) -> list[tuple[Any, Any]]:
    """Return all pairs of container and key below ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [location for key, child in list(items) for location in ((value, key), *locations(child))]


def rewrite(random: Random, path: Path, change: Callable[[Any, Any], str]) -> None:
    """Call ``change(container, key)`` for one value of a file; it may store ``PLACEHOLDER``, which its result replaces."""
    document = json.loads(path.read_bytes())
    inside, key = random.choice(locations(document))
    new = change(inside, key)
    path.write_text(json.dumps(document).replace(f'"{PLACEHOLDER}"', new))


@damage("json")
def unusual_value(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        inside[key] = PLACEHOLDER
        return random.choice(UNUSUAL_VALUES)

    rewrite(random, path, change)
    return False


@damage("json")
def similar_value(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        old, inside[key] = inside[key], PLACEHOLDER
        new: list[Any] = [[old], {"a": old}, str(old)]
        if isinstance(old, int | float):
            new += [old + 1, old * 2, -old, old / 2, float(old), old // 2]
        return json.dumps(random.choice(new))

    rewrite(random, path, change)
    return False


@damage("json")
def missing_key(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        del inside[key]
        return ""

    rewrite(random, path, change)
    return False


@damage("json")
def duplicate_key(random: Random, path: Path) -> bool:
    document = json.loads(path.read_bytes())
    key = random.choice(list(document))
    value = random.choice((json.dumps(document[key]), random.choice(UNUSUAL_VALUES[:12])))
    path.write_text(f"{{{json.dumps(key)}: {value}, {json.dumps(document)[1:]}")
    return is_required(path)


@damage("json")
def misspelt_key(random: Random, path: Path) -> bool:
    def change(inside: Any, key: Any) -> str:
        if isinstance(inside, dict):
            inside[random.choice((key.upper(), key + " ", "", "../../x", "\ud800", key[:-1], "é"))] = inside.pop(key)
        return ""

    rewrite(random, path, change)
    return False


@damage("json")
def unusual_document(random: Random, path: Path) -> bool:
    path.write_text(random.choice(UNUSUAL_VALUES))
    return is_required(path)


@damage("json")
def other_encoding(random: Random, path: Path) -> bool:
    path.write_bytes(path.read_text().encode(random.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7"))))
    return False


@damage("json")
def extra_key(random: Random, path: Path) -> bool:
    """A field that changes the arithmetic; every reader must refuse it."""
    document = json.loads(path.read_bytes())
    more = {"attention_multiplier": 0.5, "final_logit_softcapping": 30.0, "use_qk_norm": True, "num_local_experts": 8}
    name = random.choice(list(more))
    path.write_text(json.dumps({**document, name: more[name]}))
    return path.name in ("config.json", "params.json")

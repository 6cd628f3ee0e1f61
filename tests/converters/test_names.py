"""The name tables and error messages of docs/converting.md equal those of the code."""

import re
from pathlib import Path

import pytest

import msrnn
from converters.formats import meta_layout
from converters.formats.hf_families.family import NAMES as HF_NAMES
from converters.formats.hf_families.llama import EARLY_YI_NORMS
from converters.gguf.architectures import ARCHITECTURES

DOC = (Path(__file__).parents[2] / "docs" / "converting.md").read_text()
TABLES = {"Hugging Face": HF_NAMES, "Meta, Mistral": meta_layout.NAMES, "GGUF": ARCHITECTURES["llama"].names}


def documented():
    head, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table("| msrnn |"))
    return [dict(zip(head, row, strict=True)) for row in rows]


def table(start):
    return DOC[DOC.index(start) :].split("\n\n")[0].splitlines()


def test_documented_names_equal_those_of_the_code():
    rows = documented()
    assert len(rows) == 12
    for format, table in TABLES.items():
        expected = {**{k: f"layers.N.{v}" for k, v in table.layer.items()}, **table.outer}
        documented_names = {row[format].removeprefix(f"{table.layers}.N."): row["msrnn"] for row in rows}
        assert documented_names == expected
    assert all(f"model.layers.N.{name}" in DOC or f"`{name}`" in DOC for name in EARLY_YI_NORMS)


@pytest.mark.parametrize("format", TABLES)
def test_names_are_mapped_in_both_directions(format):
    for row in documented():
        name, msrnn_name = (row[column].replace(".N.", ".17.") + ".weight" for column in (format, "msrnn"))
        assert TABLES[format].to_msrnn(name) == msrnn_name
        assert TABLES[format].from_msrnn(msrnn_name) == name


OTHERS = """
    model.layers.0.self_attn.q_proj.bias
    model.layers.0.self_attn.q_proj.lora_A.weight
    model.layers.0.self_attn.q_proj.base_layer.weight
    base_model.model.norm.weight
    model.layers.00.mlp.up_proj.weight
    model.layers.-1.mlp.up_proj.weight
    model.layers.٣.mlp.up_proj.weight
    model.layers.0.weight
    layers.0.q.weight
    model.norm
    weight
"""


@pytest.mark.parametrize("name", ["", *OTHERS.split()])
def test_other_names_are_refused(name):
    with pytest.raises(msrnn.Error, match=r"not part of this architecture|belongs to an adapter; .*merge_and_unload"):
        HF_NAMES.to_msrnn(name)


def test_every_documented_error_message_is_in_the_code():
    """The words of each row between the dots are in the code."""
    root = Path(__file__).parents[2]
    code = "".join(path.read_text() for folder in ("converters", "msrnn") for path in (root / folder).rglob("*.py"))
    joined = re.sub(r"\{[^{}]*\}|\"\n\s*f?\"", "", code)
    rows = table("| the message contains |")[2:]
    assert len(rows) >= 15
    for row in rows:
        for part in row.split("|")[1].split("…"):
            words = part.strip(" ;.,")
            assert words in joined or words in code, row

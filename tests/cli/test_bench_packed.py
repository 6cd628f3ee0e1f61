"""``msrnn bench`` with packed weights: the cell computes in bfloat16, and transformers in ``--dtype``."""

import json
from itertools import repeat

import pytest
import torch
from support.packed_models import packed_cell
from support.tiny_models import tiny_cell

from msrnn.bench.step import bytes_read
from msrnn.cli.main import main

SECTIONS = "step,small-unroll,bandwidth,bfloat16"


@pytest.mark.parametrize("given", ["folder", "option"])
def test_packed_weights_compute_in_bfloat16(given, folder, tmp_path, capsys):
    source, options = folder / "own", ["--weights", "int8"]
    if given == "folder":
        packed_cell("int4", torch.float32, tied=True).save(source := tmp_path / "packed")
        options = []
    kind = "int8" if options else "int4"
    sizes = ["--tokens", "32", "--size", "8", "--rounds", "1", "--threads", "1"]
    args = ["bench", str(source), *options, *sizes, "--only", SECTIONS, "--json", str(tmp_path / "b.json")]
    assert main(args) == 0
    capsys.readouterr()
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["about"]["model"].endswith(f"million parameters, {kind} with bfloat16, baselines in float32")
    assert [
        (row["workload"], row["baseline_name"], row["target"]) for row in map(dict.get, written["rows"], repeat("row"))
    ] == [
        (f"step_, tova:8, {kind}, bfloat16", "transformers in float32, step at length 8", "≤ 0.35"),
        (f"step_, tova:8, {kind}, bfloat16", "transformers in bfloat16, step at length 8", "≤ 0.5"),
        ("unroll of 16 tokens on tova:8", "transformers in float32, step at length 8", "≤ 1.2"),
        (f"parameters read in a step_, tova:8, {kind}, bfloat16", "summing 537 MB", "≥ 0.45 (aim 0.5)"),
        ("bfloat16", "", ""),
    ]
    assert written["rows"][4]["row"]["note"] == "the cell has packed weights and computes in torch.bfloat16"


def test_bytes_read_in_a_step():
    packed = packed_cell("int4", None, tied=True)
    assert bytes_read(packed) == sum(x.nbytes for x in packed.state_dict().values())
    plain = tiny_cell(dtype=torch.float32, tied=False)
    assert bytes_read(plain) == sum(x.nbytes for x in plain.parameters()) - plain.embed.weight.nbytes
    packed = packed_cell("int8", None, tied=False)
    embedding = packed.embed.codes.nbytes + packed.embed.scales.nbytes
    assert bytes_read(packed) == sum(x.nbytes for x in packed.state_dict().values()) - embedding

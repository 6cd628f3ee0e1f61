"""``msrnn info``."""

import pytest
import torch
from support.packed_models import SHAPES, packed_cell
from support.tiny_models import tiny_cell

import converters
from converters import hub
from msrnn.cli.info import describe
from msrnn.cli.main import main
from msrnn.models import GEMMA3_270M, SMOLLM3_3B


def test_info_of_a_folder_without_weights(hf_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "parameters    134.5 million",
        "layers        30 of width 576, MLP width 1536",
        "heads         9 query, 3 key/value, of dimension 64",
        "vocabulary    49,152, LM head tied to the embedding",
        "context length 8,192",
        "reduction     full (default of the family)",
        "eos token ids 2",
        "KV cache      23,760 bytes per token in 16 bits, 46,800 in float32",
    ):
        assert fact in out, out


def weights_line(capsys, path):
    assert main(["info", str(path)]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("  weights ")]


def test_info_shows_how_the_weights_are_stored(tmp_path, capsys):
    # 2 layers of 2 · 64² + 2 · 32 · 64 + 3 · 96 · 64 numbers; embedding and head of 50 · 64; norms of 5 · 64
    packed_cell("int4", None).save(tmp_path / "int4")
    four, eight, norms = 2 * (2 * 64**2 + 2 * 32 * 64 + 3 * 96 * 64), 2 * 50 * 64, 5 * 64
    n_bytes = four // 2 + four // 32 * 4 + eight + 2 * 50 * 2 + norms * 2
    line = f"  weights       {n_bytes / 1e6:.1f} MB: {four:,} numbers in 4 bits, {eight:,} in 8 bits, {norms} in bfloat16"
    assert weights_line(capsys, tmp_path / "int4") == [line]
    packed_cell("int8", torch.float32).save(tmp_path / "int8")
    (line,) = weights_line(capsys, tmp_path / "int8")
    assert line.endswith(f"{four + eight:,} numbers in 8 bits, {norms} in float32")
    tiny_cell(dtype=torch.float32, **SHAPES).save(tmp_path / "float")
    (line,) = weights_line(capsys, tmp_path / "float")
    assert line == f"  weights       {(four + eight + norms) * 4 / 1e6:.1f} MB: {four + eight + norms:,} numbers in float32"
    (tmp_path / "float" / "model.safetensors").write_bytes(b"damaged")
    assert weights_line(capsys, tmp_path / "float") == []


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_info_shows_the_bytes_that_packed_weights_take(weights, tmp_path, capsys):
    tiny_cell(dtype=torch.float32, **SHAPES).save(tmp_path / "float")
    cell = converters.load(tmp_path / "float", weights=weights)
    n_bytes = sum(x.nbytes for x in (*cell.parameters(), *cell.buffers()))
    assert main(["info", str(tmp_path / "float"), "--weights", weights]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("  in memory "))
    assert line.startswith(f"  in memory     {n_bytes / 1e6:.1f} MB: ")
    assert line.endswith(f", 320 in bfloat16 ({weights})")  # the norms
    assert "8 bits" in line
    assert ("4 bits" in line) == (weights == "int4")


def test_info_of_packed_weights_needs_a_local_model(tmp_path, capsys, monkeypatch):
    tiny_cell(dtype=torch.float32, **SHAPES).save(tmp_path / "own")
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: tmp_path / "own")
    assert main(["info", "owner/name", "--weights", "int4"]) == 1
    assert "--weights is given for 'owner/name'" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "own"), "--weights", "packed"]) == 1
    assert "packed" in capsys.readouterr().err


def test_info_shows_the_types_of_a_gguf_file(gguf_path, hf_folder, capsys):
    (line,) = weights_line(capsys, gguf_path)
    assert line.startswith("  weights       ")
    assert "106.2 million numbers in Q4_1, 28.3 million in Q8_0, 35,136 in F32" in line
    (line,) = weights_line(capsys, hf_folder)
    assert "538.1 MB: 134.5 million numbers in float32" in line


def test_info_of_a_hub_id_reads_no_weights(tmp_path, capsys, monkeypatch):
    packed_cell("int4", None).save(tmp_path / "own")
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda *_, weights, **__: fetched.append(weights) or tmp_path / "own")
    assert weights_line(capsys, "owner/name") == []
    assert fetched == [False]


def test_info_of_models_with_layers_that_differ():
    """A row of Gemma 3 270M has 2 · 256 numbers in 16 bits, and a position of 8 bytes, in one head."""
    found = {line[:16].strip(): line[16:] for line in describe(GEMMA3_270M)}
    assert found["reduction"] == "window:511 in 15 layers, full in 3 (default of the family)"
    ropes = "Rope(theta=10000.0) in 15 layers, Rope(theta=1000000.0) in 3"
    assert found["positions"] == f"{ropes}, context length 32,768"
    row = 2 * 256 * 2 + 8
    assert found["KV cache"].startswith(f"{18 * row:,} bytes per token in 16 bits")
    windows = f"at most {15 * 511 * row / 1e6:.1f} MB in 16 bits in 15 layers with a window (0…4, 6…10, 12…16)"
    assert found["bounded"] == f"{windows}; {3 * row:,} bytes per token in 3 layers without (5, 11, 17)"
    found = {line[:16].strip(): line[16:] for line in describe(SMOLLM3_3B)}
    assert found["positions"] == "Rope(theta=5000000.0) in 27 layers, none in 9, context length 65,536"
    assert "bounded" not in found

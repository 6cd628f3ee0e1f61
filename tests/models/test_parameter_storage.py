"""Tests of mapped parameters: which are mapped, edits, moves, processes, and the memory that becomes resident."""

import copy
import pickle
import sys

import pytest
import torch
import torch.multiprocessing as multiprocessing
from benchmarks.memory import measured
from safetensors.torch import load_file, save_file
from support.tiny_models import random_tokens, tiny_cell, tiny_decoder

import converters
import msrnn
from msrnn.layers import linear
from msrnn.layers.linear import _fused_weight
from msrnn.models import parameter_storage
from msrnn.storage.mapped_files import MappedFiles

CELL = tiny_cell(dtype=torch.float32)
TEXT = random_tokens(1, 2, 5)
LOGITS = CELL(TEXT)[0]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def own(tmp_path):
    CELL.save(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def hf(tmp_path):
    converters.convert(CELL, tmp_path / "hf", to="hf")
    rewrite(tmp_path / "hf")
    return tmp_path / "hf"


def rewrite(folder):
    """Write the weights as the safetensors package does, sorted by name."""
    path = folder / "model.safetensors"
    save_file({name: x.clone() for name, x in load_file(path).items()}, path.with_name("new"), {"format": "pt"})
    path.with_name("new").replace(path)


def mapped(cell, folder):
    """Return the names of the parameters that lie in a mapping of a file in ``folder``."""
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if str(folder) in line:
                ranges.append([int(x, 16) for x in line.split()[0].split("-")])
    return {name for name, x in cell.named_parameters() if any(a <= x.data_ptr() < b for a, b in ranges)}


def is_fused(cell):
    return all(_fused_weight([x.weight for x in group]) is not None for layer in cell.layers for group in layer.fused_groups)


@linux
@pytest.mark.parametrize("load", [msrnn.load, converters.load])
def test_the_own_folder_is_mapped_and_fused(load, own):
    cell = load(own)
    assert mapped(cell, own) == dict(cell.named_parameters()).keys()
    assert is_fused(cell)
    assert cell(TEXT)[0].equal(LOGITS)


def test_mapped_parameters_are_aligned(tmp_path):
    tiny_cell(dtype=torch.bfloat16, width=32).save(tmp_path / "own")
    assert {x.data_ptr() % 64 for x in msrnn.load(tmp_path / "own").parameters()} == {0}


@linux
@pytest.mark.parametrize("source", ["hf", "own"])
def test_the_order_of_a_converted_folder_is_that_of_the_cell(source, request, tmp_path):
    """Names of Hugging Face are sorted otherwise: k, o, q, v."""
    converters.convert(request.getfixturevalue(source), tmp_path / "new")
    cell = msrnn.load(tmp_path / "new")
    assert mapped(cell, tmp_path / "new") == dict(cell.named_parameters()).keys()
    assert is_fused(cell)


@linux
@pytest.mark.parametrize("limit", [0, 2**25])
def test_of_other_orders_small_groups_are_copied_and_large_ones_are_not_fused(limit, hf, monkeypatch):
    monkeypatch.setattr(linear, "MAX_MOVED_BYTES", limit)
    monkeypatch.setattr(parameter_storage, "MAX_MOVED_BYTES", limit)
    cell = converters.load(hf)
    copied = {name for name in dict(cell.named_parameters()) if name.split(".")[-2] in ("q", "k", "v") and limit}
    assert mapped(cell, hf) == dict(cell.named_parameters()).keys() - copied
    assert is_fused(cell) == (limit > 0)
    assert all(a.equal(b) for a, b in zip(cell.parameters(), CELL.parameters(), strict=True))
    assert torch.allclose(cell(TEXT)[0], LOGITS, atol=1e-5)
    assert mapped(cell.to("cpu"), hf) == dict(cell.named_parameters()).keys() - copied


@linux
def test_a_damaged_alignment_is_no_error(own):
    path = own / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes((start - 7).to_bytes(8, "little") + data[8:start] + b" " + data[start:])
    cell = msrnn.load(own)
    assert mapped(cell, own) == set()
    assert is_fused(cell)
    assert cell(TEXT)[0].equal(LOGITS)


@linux
@pytest.mark.parametrize("settings", [{"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}])
def test_another_dtype_or_device_is_copied(settings, own):
    cell = msrnn.load(own, **settings)
    assert mapped(cell, own) == set()
    assert {x.dtype for x in cell.parameters()} == {settings.get("dtype", torch.float32)}


@linux
def test_a_decoder_with_learned_rows_is_mapped(tmp_path):
    cell = tiny_decoder(bias=True, memory_tokens=2, persistent=2).float()
    cell.save(tmp_path / "own")
    again = msrnn.load(tmp_path / "own")
    assert mapped(again, tmp_path / "own") >= {"layers.0.q.weight", "layers.1.v.weight", "embed.weight"}
    assert again(TEXT)[0].equal(cell(TEXT)[0])


def test_training_and_edits_do_not_reach_the_file(own):
    path = own / "model.safetensors"
    before, cell, other = path.read_bytes(), msrnn.load(own), msrnn.load(own)
    cell.requires_grad_()
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        cell(TEXT)[0].square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        cell.layers[0].q.weight.zero_()
    assert cell.layers[0].k.weight.ne(0).any()
    assert not any(a.equal(b) for a, b in zip(cell.parameters(), CELL.parameters(), strict=True))
    assert path.read_bytes() == before
    assert other(TEXT)[0].equal(LOGITS)
    cell.save(own.with_name("trained"))
    again = msrnn.load(own.with_name("trained"))
    assert all(a.equal(b) for a, b in zip(again.parameters(), cell.parameters(), strict=True))


def test_two_cells_of_one_source_do_not_share_edits(own):
    source = converters.detect.open_source(own, None)
    first, second = converters.load(source), converters.load(source)
    first.embed.weight.zero_()
    assert second(TEXT)[0].equal(LOGITS)
    assert converters.load(source)(TEXT)[0].equal(LOGITS)


def test_edits_of_fused_parameters_are_counted_apart(own):
    """Autograd refuses a backward pass if a saved tensor has a new version, and tensors of one view share the version."""
    layer = msrnn.load(own).layers[0]
    layer.q.weight.zero_()
    assert [x.weight._version for x in (layer.q, layer.k, layer.v)] == [1, 0, 0]


def test_a_cell_survives_its_files(own):
    cell = msrnn.load(own)
    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    CELL.save(own)
    assert cell(TEXT)[0].equal(LOGITS)
    cell.save(own.with_name("copy"))
    assert msrnn.load(own.with_name("copy"))(TEXT)[0].equal(LOGITS)


MOVES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda cell: pickle.loads(pickle.dumps(cell)),
    "to": lambda cell: cell.to(torch.float64).to(torch.float32),
    "share_memory": lambda cell: cell.share_memory(),
    "to_empty": lambda cell: cell.to_empty(device="cpu"),
}


@linux
@pytest.mark.parametrize("move", MOVES)
def test_a_moved_cell_is_not_mapped(move, own):
    cell = MOVES[move](msrnn.load(own))
    assert mapped(cell, own) == set()
    if move == "to_empty":
        cell.load_state_dict(CELL.state_dict())
    path = own / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.allclose(cell(TEXT)[0], LOGITS, atol=1e-6)


def test_a_pickle_has_each_fused_storage_once_per_tensor(own):
    """Tensors are pickled with their whole storage, so the storage must not be the file."""
    size, copied = len(pickle.dumps(msrnn.load(own))), len(pickle.dumps(copy.deepcopy(CELL)))
    assert size < 1.1 * copied


def child(connection, cell):
    torch.set_num_threads(1)
    if cell is None:
        cell = connection.recv()
    cell.norm.weight.data.mul_(2)
    connection.send(cell(TEXT)[0].numpy())


@pytest.mark.parametrize(("method", "queued"), [("fork", False), ("fork", True), ("spawn", False)])
def test_a_mapped_cell_in_another_process(method, queued, own):
    """A forked process has its own edits; a cell that is sent is in shared memory, as any tensor that torch sends."""
    context, cell = multiprocessing.get_context(method), msrnn.load(own)
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, None if queued else cell))
    process.start()
    if queued:
        here.send(cell)
    found = torch.from_numpy(here.recv())
    process.join()
    expected = copy.deepcopy(CELL)
    expected.norm.weight.data.mul_(2)
    assert torch.allclose(found, expected(TEXT)[0], atol=1e-5)
    assert cell(TEXT)[0].allclose(LOGITS if method == "fork" and not queued else found, atol=1e-5)
    assert msrnn.load(own)(TEXT)[0].equal(LOGITS)


def test_a_system_that_cannot_map_copies(own, monkeypatch):
    monkeypatch.setattr("mmap.mmap", lambda *_, **__: (_ for _ in ()).throw(OSError("no mapping")))
    files = MappedFiles()
    monkeypatch.setattr(parameter_storage, "MappedFiles", lambda: files)
    cell = msrnn.load(own)
    assert set(files._mappings.values()) == {None}
    assert cell(TEXT)[0].equal(LOGITS)


@linux
def test_loading_touches_few_pages(tmp_path, figure):
    cell = tiny_cell(dtype=torch.float32, vocab_size=4000, width=512, ffn_width=1024)
    size = sum(x.nbytes for x in cell.parameters())
    cell.save(tmp_path / "own")
    before, peak, _ = measured(f"cell = msrnn.load({str(tmp_path / 'own')!r})")
    figure(f"load {size / 1e6:.0f} MB, mapped: {(peak - before) / 1e6:.1f} MB at the peak")
    assert peak - before < size / 4  # 4 MB were measured, most of it for modules

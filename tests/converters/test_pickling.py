"""Cells from every source can be copied, pickled, saved by ``torch.save`` and sent to a spawned process."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from fuzzing.writers import sentencepiece_model
from support.tiny_checkpoints import SOURCES, exists, make_checkpoint
from support.tiny_tokenizer import tiny_tokenizer

import converters
import msrnn

pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer has ids up to")
TOKENS = torch.randint(60, (2, 6), generator=torch.Generator().manual_seed(0))
FOLDERS = {
    "hf": lambda folder: folder,
    "hf with tokenizer.json": lambda folder: add(folder, "tokenizer.json", tiny_tokenizer().to_str().encode()),
    "hf with tokenizer.model": lambda folder: add(folder, "tokenizer.model", sentencepiece_model()),
    "own folder": lambda folder: converters.load(folder).save(folder.parent / "own") or folder.parent / "own",
}


def add(folder, name, data):
    (folder / name).write_bytes(data)
    return folder


def save_and_load(cell):
    file = io.BytesIO()
    torch.save(cell, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("source", [*SOURCES, *FOLDERS])
def test_copies_equal_the_cell(source, tmp_path):
    family = "mistral" if "mistral" in source else "gqa"
    assert source in FOLDERS or exists(source, family)
    model, state, fields = make_checkpoint(family, tmp_path / "hf")
    if source in FOLDERS:
        opened = FOLDERS[source](tmp_path / "hf")
    else:
        opened = SOURCES[source](tmp_path / "source", model, state, fields)
    for cell in (converters.load(opened), *([msrnn.load(opened)] if source == "own folder" else [])):
        expected, files = cell(TOKENS), dict(cell.extra_files)
        assert files or "with" not in source
        for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), save_and_load(cell)):
            logits, state = other(TOKENS)
            assert logits.equal(expected[0])
            assert dict(other.extra_files) == files
            assert other.config == cell.config
            other.step(TOKENS[:, 0], expected[1])  # the states of one are those of the other
            assert not any(x.requires_grad for x in other.parameters())


def answer(cell, queue):
    queue.put(cell(TOKENS)[0].tolist())


def test_spawned_process_gets_the_cell(tmp_path):
    make_checkpoint("gqa", tmp_path / "hf")
    cell = converters.load(FOLDERS["hf with tokenizer.json"](tmp_path / "hf"))
    expected = cell(TOKENS)[0]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(cell, queue))
    process.start()
    found = torch.tensor(queue.get())
    process.join()
    assert process.exitcode == 0
    assert torch.allclose(found, expected, atol=1e-5)
    assert cell(TOKENS)[0].equal(expected)  # its weights are in shared memory now

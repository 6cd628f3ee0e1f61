"""Model-parallel shards of Meta's folders."""

import pytest
import torch
from support.tiny_checkpoints import split_model_parallel, write_meta

import converters
import msrnn


@pytest.mark.parametrize(("stored", "tied"), [("none", True), ("equal", True), ("other", False)])
@pytest.mark.parametrize("n", [1, 2])
def test_a_head_that_equals_the_embedding_is_tied(stored, tied, n, tiny, tmp_path):
    """Llama 3.2 stores both; here the embedding is split along the vocabulary like the head."""
    tensors = dict(tiny[0])
    head = tensors.pop("output.weight")
    if stored != "none":
        tensors["output.weight"] = head if stored == "other" else tensors["tok_embeddings.weight"].clone()
    cell = converters.load(write_meta(tmp_path / "x", tiny, split_model_parallel(tensors, n, 0)))
    assert cell.config.tied == tied
    assert torch.equal(cell.embed.weight, tensors["tok_embeddings.weight"])


Q, NORM = "layers.0.attention.wq.weight", "layers.1.ffn_norm.weight"
REFUSED = {
    "bias": (lambda a, b: [p.update({"layers.0.attention.wq.bias": torch.zeros(12)}) for p in (a, b)], "wq.bias"),
    "adapter": (lambda a, b: [p.update({"layers.0.attention.wq.lora_A.weight": torch.zeros(2)}) for p in (a, b)], "lora_A"),
    "one has more": (
        lambda a, b: b.update({"layers.7.attention.wq.weight": torch.zeros(1)}),
        "disagree about tensor 'layers.7",
    ),
    "one has less": (lambda a, b: b.pop(Q), "disagree about tensor"),
    "shapes": (lambda a, b: b.update({Q: b[Q][:-1].clone()}), r"the parts of tensor 'layers.0.attention.wq.weight' are"),
    "types": (lambda a, b: b.update({Q: b[Q].bfloat16()}), "expected equal shapes and types"),
    "norms": (lambda a, b: b[NORM].mul_(2), r"parts of tensor 'layers.1.ffn_norm.weight' differ"),
    "head twice": (lambda a, b: [p.update({Q: torch.zeros(24, 24)}) for p in (a, b)], r"shape \(48, 24\)"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_shards_that_do_not_fit_are_refused(change, message, tiny, tmp_path):
    files = split_model_parallel(tiny[0], 2, 1)
    change(*files)
    with pytest.raises(msrnn.Error, match=message):
        converters.load(write_meta(tmp_path / "x", tiny, files))


def test_a_missing_shard_is_refused(tiny, tmp_path):
    folder = write_meta(tmp_path / "x", tiny, split_model_parallel(tiny[0], 4, 1))
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(msrnn.Error, match=r"consolidated\.01\.pth is missing"):
        converters.load(folder)
    for n in (2, 3):
        (folder / f"consolidated.{n:02}.pth").unlink()
    with pytest.raises(msrnn.Error, match="shape"):  # the first shard alone has smaller tensors
        converters.load(folder)


TABLES = ("rope.freqs", "layers.0.attention.inner_attention.rope.freqs", "freqs_cis", "freqs_cos")


@pytest.mark.parametrize("names", [[name] for name in TABLES] + [TABLES], ids=str)
def test_stored_rotary_tables_are_skipped(names, tiny, tmp_path):
    """LLaMA 1 has a table in every layer, LLaMA 2 has one."""
    tables = {name: torch.ones(3) for name in names}
    files = [{**shard, **tables} for shard in split_model_parallel(tiny[0], 2, 1)]
    cell, plain = converters.load(write_meta(tmp_path / "x", tiny, files)), converters.load(write_meta(tmp_path / "y", tiny))
    assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("wrap", [lambda x: {"model": x, "step": 3}, lambda x: {f"module.{name}": y for name, y in x.items()}])
def test_wrappers_around_metas_tensors_are_removed(wrap, tiny, tmp_path):
    cell = converters.load(write_meta(tmp_path / "x", tiny, [wrap(tiny[0])]))
    assert torch.equal(cell.embed.weight, tiny[0]["tok_embeddings.weight"])

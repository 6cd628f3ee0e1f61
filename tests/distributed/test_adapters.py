"""LoRA adapters of a split cell: logits, gradients, files and fine-tuning equal those of one process."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import TARGETS, adapt
from support.rank_groups import run_ranks
from support.split_cells import largest_gap, refusal, text
from support.tiny_families import tiny_family
from support.tiny_models import tiny_cell
from support.training import words
from torch.nn.functional import cross_entropy

import msrnn
from msrnn import lora
from msrnn.distributed.ranks import TRAFFIC
from msrnn.models.loading import build_frozen
from msrnn.models.packing import pack_tensors
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.train import FinetuneConfig, finetune

CASES = {"llama": {}, "llama shared head": {"n_kv_heads": 1}, "qwen3": {}, "gemma2": {}}
TUNED = FinetuneConfig(
    reduction="tova:6", steps=5, batch_size=2, chunk_length=8, chunks_per_state=3, lr=0.02, warmup_steps=2, eval_every=2,
    val_tokens=40, weight_decay=0.1, max_grad_norm=0.2, r=3, target_modules="all-linear",
)  # fmt: skip
BYTES = "".join(x for x in words() if x.isascii())


def encode(text):
    return [0, *(ord(x) % 50 for x in text)]


def run_cases(rank, folder):
    found = {name: adapted(name, fields, folder / name) for name, fields in CASES.items()}
    return {**found, "packed": packed(folder), "tuned": tuned(rank, folder), "refusals": refusals(folder)}


def adapted(name, fields, folder):
    family = name.partition(" ")[0]
    sizes = {"n_layers": 2, "layer_windows": (), "vocab_size": 51, **fields}
    targets = TARGETS[: -1 if family == "gemma2" else None]  # its LM head is the embedding
    whole, split, new = (tiny_family(family, **sizes) for _ in range(3))
    split, new = msrnn.distribute(split), msrnn.distribute(new)
    adapt(whole, r=3, lora_alpha=5, target_modules=targets)
    first = lora.add(tiny_family(family, **sizes), r=3, target_modules=targets, generator=torch.Generator().manual_seed(7))
    lora.add(new, r=3, target_modules=targets, generator=torch.Generator().manual_seed(7))
    same_start = all(x.equal(own_slice(split, path, first)) for path, x in lora.adapter_parameters(new).items())
    if torch.distributed.get_rank() == 0:
        lora.save_adapter(whole, folder / "whole")
    torch.distributed.barrier()
    lora.load_adapter(split, folder / "whole", is_trainable=True)
    gap = max(
        abs(loss_of(whole).item() - loss_of(split).item()),
        largest_gap(split(text(51))[0].detach(), whole(text(51))[0].detach()),
    )
    for cell in (whole, split):
        loss_of(cell).backward()
    gradients = lora.adapter_parameters(whole)
    worst = max(
        float((x.grad - own_slice(split, path, whole, gradients[path].grad)).abs().max())
        for path, x in lora.adapter_parameters(split).items()
    )
    smallest = min(float(x.grad.abs().max()) for x in gradients.values())
    lora.save_adapter(split, folder / "split", base_model=None)
    whole.requires_grad_(False)
    split.requires_grad_(False)
    same_fingerprint = split.fingerprint() == whole.fingerprint()
    expected = whole(text(51))[0]
    lora.merge(split)
    return gap, worst, smallest, largest_gap(split(text(51))[0], expected), same_fingerprint, same_start


def own_slice(split, path, whole, x=None):
    """Return the slice of this rank of a parameter of an adapter, or of its gradient ``x``."""
    x = lora.adapter_parameters(whole)[path].detach() if x is None else x
    place = split.rank_part.placement(path, x)
    return x if place is None else place.take(x, split.rank_part.ranks.rank)


def loss_of(cell):
    tokens = text(51, length=12)
    logits, state = cell(tokens[:, :-2], cell.initial_state(2, "tova:6"))
    last, _ = cell.step(tokens[:, -2], state)
    return cross_entropy(torch.cat((logits, last[:, None]), dim=1).flatten(0, 1), tokens[:, 1:].flatten())


def packed(folder):
    sizes = {"width": 64, "head_dim": 16, "n_kv_heads": 4, "ffn_width": 128, "n_layers": 1, "vocab_size": 51}
    plain = tiny_family("llama", **sizes, dtype=torch.float32)
    tensors = {name: LazyTensor.of(x) for name, x in plain.state_dict().items()}
    whole = build_frozen(plain.config, pack_tensors(plain.config, tensors, "int8"), dtype=torch.float32)
    split = msrnn.distribute(whole)
    adapt(whole, r=3, target_modules=TARGETS)
    if torch.distributed.get_rank() == 0:
        lora.save_adapter(whole, folder / "packed")
    torch.distributed.barrier()
    lora.load_adapter(split, folder / "packed")
    whole.requires_grad_(False)
    TRAFFIC.reset()
    gap = largest_gap(split(text(51))[0], whole(text(51))[0])
    return gap, TRAFFIC.messages["adapters"], split.fingerprint() == whole.fingerprint()


def tuned(rank, folder):
    one, two, same = (tiny_family("llama", n_layers=2) for _ in range(3))
    for cell in (one, two, same):
        cell.layers[0].q.weight.data[0, 0] = -0.0  # a value of the fingerprint; many GGUF files have such values
    one = finetune(one, BYTES, encode, TUNED, folder / f"one {rank}")
    two = finetune(msrnn.distribute(two), BYTES, encode, TUNED, folder / "two")
    if rank == 0:  # a finished run of two ranks is that of one process
        again = finetune(same, BYTES, encode, TUNED, folder / "two")
        assert again.losses == two.losses
    torch.distributed.barrier()
    return one.losses, two.losses, one.validation, two.validation, two.n_parameters - one.n_parameters


def refusals(folder):
    split, other = (msrnn.distribute(tiny_cell()) for _ in range(2))
    calls = {
        "dropout": lambda: lora.add(split, lora_dropout=0.1),
        "dropout of a run": lambda: finetune(split, BYTES, encode, replace(TUNED, lora_dropout=0.1), folder / "new"),
        "shape": lambda: lora.load_adapter(split, folder / "llama" / "whole"),
        "twice": lambda: lora.add(lora.add(other)),
    }
    return {name: refusal(call) for name, call in calls.items()} | {"folder": (folder / "new").exists()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    return run_ranks(2, run_cases, folder)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_equal_those_of_one_process(found, folder, name):
    for of_rank in found:
        gap, worst, smallest, after_merge, same_fingerprint, same_start = of_rank[name]
        assert max(gap, worst, after_merge) < 1e-9
        assert smallest > 1e-6
        assert same_fingerprint
        assert same_start
    whole, split = (folder / name / kind for kind in ("whole", "split"))
    assert (split / "adapter_config.json").read_bytes() == (whole / "adapter_config.json").read_bytes()
    assert (split / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_adapters_of_packed_matrices(found):
    for of_rank in found:
        gap, messages, same_fingerprint = of_rank["packed"]
        assert gap < 1e-4
        assert messages == 2  # after o and down
        assert same_fingerprint


def test_fine_tuning_equals_that_of_one_process(found, folder, figure):
    for of_rank in found:
        losses, split_losses, validation, split_validation, more = of_rank["tuned"]
        assert split_losses == pytest.approx(losses, abs=1e-9)
        assert split_validation == pytest.approx(validation, abs=1e-9)
        assert validation[5] < validation[0] - 0.05
        assert more == 0
    gap = max(abs(a - b) for a, b in zip(losses, split_losses, strict=True))
    figure(f"{len(losses)} steps of fine-tuning on two ranks: losses differ from those of one process by {gap:.1e}")
    assert sorted(x.name for x in (folder / "two").iterdir()) == sorted(x.name for x in (folder / "one 0").iterdir())
    adapter, expected = (load_file(folder / name / "adapter_model.safetensors") for name in ("two", "one 0"))
    assert adapter.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.allclose(adapter[name], x, rtol=0, atol=1e-9), name


def test_what_is_refused(found):
    for of_rank in found:
        refusals = of_rank["refusals"]
        assert "lora_dropout is 0.1 in a cell that is split over 2 ranks; expected 0" in refusals["dropout"]
        assert refusals["dropout of a run"] == refusals["dropout"]
        assert "for rank 3 and a weight of (" in refusals["shape"]
        assert "the cell has adapters already" in refusals["twice"]
        assert not refusals["folder"]

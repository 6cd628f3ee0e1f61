"""Training of a model on two ranks: the numbers and the files of one process, and a run that changes the number of ranks."""

import json
from dataclasses import replace

import pytest
import torch
from support.rank_groups import run_ranks
from support.split_cells import refusal
from support.training import DECODER, MODEL, train_config, words
from torch.distributed import group

import msrnn
from msrnn.storage.safetensors_io import read_metadata, read_tensors
from msrnn.train import train
from msrnn.train.trainer import Trainer

CONFIGS = {
    "tova": train_config(model={**MODEL, "n_heads": 4, "n_kv_heads": 2}, lr=0.02, weight_decay=0.3, max_grad_norm=0.5),
    "shared head": train_config(model={**MODEL, "tied": True}, reduction="h2o:6", lr=0.02),
}
"""The second model has one key/value head, which both ranks hold."""


def train_in_both_ways(rank, folder):
    torch.set_default_dtype(torch.float64)
    found = {}
    for name, config in CONFIGS.items():
        one = train(config, words(), folder / f"{name} one {rank}")
        two = train(config, words(), folder / f"{name} two", group=group.WORLD)
        found[name] = one.losses, two.losses, one.validation, two.validation, two.n_parameters - one.n_parameters
    config, text = CONFIGS["tova"], words()
    for first, second in ((None, group.WORLD), (group.WORLD, None)):
        run = folder / ("stopped on one" if first is None else "stopped on two")
        if first is not None or rank == 0:
            with pytest.MonkeyPatch.context() as patch:
                stop_after(patch, 6)
                with pytest.raises(KeyboardInterrupt):
                    train(config, text, run, group=first)
        torch.distributed.barrier()
        if second is not None or rank == 0:
            train(config, text, run, group=second)
    bad, path = replace(config, model=DECODER, reduction="full"), folder / "refused"
    found["refusals"] = [
        refusal(lambda: train(bad, text, path, group=group.WORLD)),
        refusal(lambda: train(replace(config, model={**config.model, "ffn_width": 25}), text, path, group=group.WORLD)),
        refusal(lambda: train(replace(config, seed=rank), text, path, group=group.WORLD)),
        refusal(lambda: train(replace(config, lr=0.5), text, folder / "tova two", group=group.WORLD)),
        refusal(lambda: train(config, text, (folder / "file" if rank == 0 else path) / "run", group=group.WORLD)),
        path.exists(),
    ]
    return found


def stop_after(patch, n):
    step = Trainer.train_step

    def stopped(self, batch):
        if len(self.losses) == n:
            raise KeyboardInterrupt
        return step(self, batch)

    patch.setattr(Trainer, "train_step", stopped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "file").write_text("no folder")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return run_ranks(2, train_in_both_ways, folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_equal_those_of_one_process(found, name, figure):
    for of_rank in found:
        losses, split_losses, validation, split_validation, more = of_rank[name]
        assert losses[0] - losses[-1] > 0.5
        assert split_losses == pytest.approx(losses, abs=1e-9)
        assert split_validation == pytest.approx(validation, abs=1e-9)
        assert more == 0
    gap = max(abs(a - b) for a, b in zip(losses, split_losses, strict=True))
    figure(f"{len(losses)} training steps on two ranks, {name}: losses differ from those of one process by {gap:.1e}")
    assert found[0][name][1] == found[1][name][1]


@pytest.mark.parametrize("name", ["tova two", "shared head two", "stopped on one", "stopped on two"])
def test_files_are_those_of_one_process(found, folder, name):
    """Also after a run that stopped after 6 of 12 steps, and was resumed from step 4 by another number of ranks."""
    expected = folder / f"{name.removesuffix(' two') if name in ('tova two', 'shared head two') else 'tova'} one 0"
    assert sorted(x.name for x in (folder / name).iterdir()) == sorted(x.name for x in expected.iterdir())
    for path in expected.glob("*.safetensors"):
        tensors, found_tensors = dict(read_tensors(path)), dict(read_tensors(folder / name / path.name))
        assert found_tensors.keys() == tensors.keys()
        for key, x in tensors.items():
            assert found_tensors[key].shape == x.shape, key
            assert torch.allclose(found_tensors[key].double(), x.double(), rtol=0, atol=1e-9), key
        assert read_metadata(folder / name / path.name) == read_metadata(path)
    assert (folder / name / "config.json").read_bytes() == (expected / "config.json").read_bytes()
    assert msrnn.load(folder / name).config.family == "llama"


def test_refusals_are_those_of_every_rank_and_leave_nothing(found):
    for rank, of_rank in enumerate(found):
        decoder, widths, seeds, other_run, no_folder, exists = of_rank["refusals"]
        assert "family is decoder, which cannot be split over 2 ranks" in decoder
        assert "ffn_width is 25; expected a multiple of 2" in widths
        assert "rank 1 has another training run than rank 0" in seeds
        assert "contains a run with lr 0.02; this one has 0.5" in other_run
        assert "cannot" in no_folder
        assert no_folder.startswith("rank 0: ") == (rank == 1)
        assert not exists


def test_the_settings_of_a_run_do_not_contain_the_number_of_ranks(found, folder):
    settings = json.loads(read_metadata(folder / "tova two" / "training.safetensors")["config"])
    assert not [name for name in settings if "rank" in name or "group" in name]

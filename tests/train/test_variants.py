"""Runs of the variants: equal conditions, reuse of finished runs, curves."""

from dataclasses import replace

import pytest
from support.training import DECODER, train_config, words

import msrnn
from msrnn.models.registry import build_random
from msrnn.train import variants
from msrnn.train.trainer import Diverged, Trainer
from msrnn.train.variants import VARIANTS, Variant, measure, run_all, run_key


def test_variants_of_a_table_have_equal_parameters_steps_and_tokens():
    sizes = {
        name: sum(x.numel() for x in build_random(v.config.model_config(11 if v.task else 256)).parameters())
        for name, v in VARIANTS.items()
    }
    for task in (False, True):
        some = [name for name, v in VARIANTS.items() if bool(v.task) is task]
        assert max(sizes[n] for n in some) < 1.012 * min(sizes[n] for n in some)
        same = {(c.steps, c.batch_size, c.chunk_length, c.lr, c.chunks_per_state) for c in (VARIANTS[n].config for n in some)}
        assert len(same) == 1
    assert len({run_key("", 0, v) for v in VARIANTS.values()}) == len(VARIANTS)  # all variants differ


SMALL = {
    "text": Variant(train_config(model=DECODER, steps=4, reduction="full"), ("full", "tova:6")),
    "task": Variant(
        train_config(model={**DECODER, "memory_tokens": 2, "recurrent": True}, steps=4, chunk_length=5), (), "copy"
    ),
}


def test_finished_runs_are_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "SEEDS", (0, 1))
    done = run_all(words(), tmp_path, 1, SMALL)
    for name, variant in SMALL.items():
        for seed in (0, 1):
            record = measure(variant, seed, words())
            kept = done[run_key(name, seed, variant)]
            assert kept["results"] == record["results"]
            assert [*map(tuple, kept["curve"])] == record["curve"]
    assert done[run_key("text", 0, SMALL["text"])]["results"] != done[run_key("text", 1, SMALL["text"])]["results"]
    assert list(done[run_key("text", 0, SMALL["text"])]["results"]) == ["full", "tova:6"]
    with monkeypatch.context() as patch:
        patch.setattr(variants, "multiprocessing", None)  # training would fail
        run_all(words(), tmp_path, 1, SMALL)
    with pytest.raises(msrnn.Error, match="contains a run with text"):
        run_all(words(seed=1), tmp_path, 1, SMALL)
    other = replace(SMALL["text"], config=replace(SMALL["text"].config, lr=0.1))
    assert run_key("text", 0, other) != run_key("text", 0, SMALL["text"])


def test_a_diverged_run_has_no_results(monkeypatch):
    optimizer_step = Trainer.optimizer_step

    def diverge(self, loss):
        if len(self.losses) == 2:
            raise Diverged("step 3: the loss is nan")
        return optimizer_step(self, loss)

    monkeypatch.setattr(Trainer, "optimizer_step", diverge)
    record = measure(SMALL["text"], 0, words())
    assert record["results"] == {}
    assert len(record["curve"]) == 2


def test_points_of_a_curve_are_means_at_the_last_step_of_their_span(monkeypatch):
    monkeypatch.setattr(variants, "POINTS", 4)
    single = measure(SMALL["text"], 0, words())["curve"]
    assert [step for step, _ in single] == [1, 2, 3, 4]
    monkeypatch.setattr(variants, "POINTS", 2)
    pairs = measure(SMALL["text"], 0, words())["curve"]
    losses = [loss for _, loss in single]
    assert pairs == [(2, pytest.approx(sum(losses[:2]) / 2)), (4, pytest.approx(sum(losses[2:]) / 2))]
    longer = replace(SMALL["text"], config=replace(SMALL["text"].config, steps=5))
    assert [step for step, _ in measure(longer, 0, words())["curve"]] == [2, 4]  # no point of fewer steps

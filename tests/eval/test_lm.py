"""Perplexity equals that of the step loop and of transformers; tables and figure contain the results."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_models import assert_close, random_tokens, step_loop, tiny_cell
from support.transformers_reference import tiny_reference

import converters
from msrnn.eval import teacher_forcing
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.lm import LMResult, nll, report, score_chunks, truncated_nll
from msrnn.eval.texts import Chunk, split_into_chunks

CELL = tiny_cell()


def by_steps(ids, reduction):
    """Return −ln p of tokens 1 …, by the step loop."""
    logits, _ = step_loop(CELL, ids, CELL.initial_state(len(ids), reduction))
    return -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("reduction", ["full", "window:5", "h2o:6", "tova:5"])
@pytest.mark.parametrize("most", [1, 300, 10**9])
def test_nll_equals_the_step_loop_for_any_memory_limit(reduction, most, monkeypatch):
    monkeypatch.setattr(teacher_forcing, "MAX_LOGITS", most)
    ids = random_tokens(0, 3, 23)
    assert_close(nll(CELL, ids, reduction), by_steps(ids, reduction), 1e-8)


def test_nll_equals_the_loss_of_transformers():
    model = tiny_reference()
    ids = random_tokens(1, 1, 30, 61)
    assert_close(nll(converters.load(model), ids).mean(), model(ids, labels=ids).loss.double(), 1e-4)  # float32 loss


@pytest.mark.parametrize("size", [1, 3, 5, 22, 40])
def test_the_truncated_model_sees_at_most_size_tokens(size):
    ids = random_tokens(2, 2, 23)
    found = truncated_nll(CELL, ids, size)
    assert found.shape == (2, 22)
    for t in range(1, 23):
        begin = (t - 1) // size * size
        assert_close(found[:, t - 1], by_steps(ids[:, begin : t + 1], "full")[:, -1], 1e-8)


def test_the_number_of_logits_in_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(teacher_forcing, "MAX_LOGITS", 5 * 3 * 50)
    most = []
    read = type(CELL).compute_logits
    monkeypatch.setattr(type(CELL), "compute_logits", lambda self, x: most.append(x.shape[1:-1].numel()) or read(self, x))
    nll(CELL, random_tokens(0, 3, 40))
    assert max(most) == 5


def test_a_batch_gives_the_scores_of_single_chunks():
    ids = random_tokens(3, 3, 31)
    batch = [Chunk(f"t {i}", x, "x" * 31, tuple((j, j + 1) for j in range(31)), 1) for i, x in enumerate(ids)]
    for condition in parse_conditions(["tova", "truncated"], [5]):
        together, single = score_chunks(CELL, batch, condition), [score_chunks(CELL, [c], condition)[0] for c in batch]
        for a, b, c in zip(together, single, batch, strict=True):
            assert (a.chunk, a.tokens, a.n_bytes) == (b.chunk, b.tokens, b.n_bytes) == (c.name, 30, 30)
            assert a.nll == pytest.approx(b.nll, abs=1e-8)
    assert together[0].nll == pytest.approx(float(truncated_nll(CELL, ids[:1], 5).sum()))


def test_time_of_a_batch_is_divided_by_its_chunks(monkeypatch):
    times = iter([1.0, 7.0])
    monkeypatch.setattr("msrnn.eval.lm.time.perf_counter", lambda: next(times))
    batch = [Chunk(f"t {i}", x, "x" * 9, tuple((j, j + 1) for j in range(9)), 1) for i, x in enumerate(random_tokens(3, 3, 9))]
    assert [r.seconds for r in score_chunks(CELL, batch, parse_conditions(["tova"], [5])[0])] == [2, 2, 2]


def test_tables_and_figure_contain_the_results():
    values = {("full", None): [2.0, 3.0, 2.5], ("tova", 8): [2.1, 3.2, 2.4], ("window", 8): [4.0, 5.0, 2.3]}
    results = [
        LMResult(row, size, f"book {i}", 10 * x, 10, (40, 20, 60)[i], x)
        for (row, size), xs in values.items()
        for i, x in enumerate(xs)
    ]
    perplexity, bits, relative, seconds = report(results, "tova").tables
    assert perplexity.columns == ["operator", "8", "unbounded"]
    at = {row[0]: row[1:] for row in perplexity.rows}
    error = statistics.stdev([2.0, 3.0, 2.5]) / math.sqrt(3) * math.exp(2.5)
    assert at["full"] == ["", f"{math.exp(2.5):.1f} ± {error:.1f}"]
    assert at["tova"][0].startswith(f"{math.exp(7.7 / 3):.1f} ")
    assert {row[0]: row[1] for row in bits.rows}["window"] == f"{113 / math.log(2) / 120:.4f}"
    gaps = [1.9, 1.8, -0.1]
    assert {row[0]: row[1] for row in relative.rows}["window"] == (
        f"{statistics.mean(gaps):+.4f} ± {statistics.stdev(gaps) / math.sqrt(3):.4f} (2/3)"
    )
    assert seconds.rows == [["full", "", "2.50"], ["tova", "2.40", ""], ["window", "4.00", ""]]
    curves = report(results, "tova").figures["lm.png"]
    assert (curves.y_label, curves.log_y) == ("nats per token above the unbounded model", True)
    assert curves.lines.keys() == {"tova", "window"}
    gaps = [0.1, 0.2, -0.1]
    assert curves.lines["tova"][0] == pytest.approx((8, statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(3)))
    curves = report([r for r in results if r.size], "tova").figures["lm.png"]
    assert (curves.y_label, curves.log_y) == ("perplexity", True)
    x, y, bar = curves.lines["tova"][0]
    assert (x, y) == (8, pytest.approx(math.exp(7.7 / 3)))
    assert bar == pytest.approx(y * statistics.stdev([2.1, 3.2, 2.4]) / math.sqrt(3))  # in perplexity, not in nats
    better = [replace(r, nll=r.nll - 30) if r.operator == "tova" else r for r in results]
    assert not report(better, "tova").figures["lm.png"].log_y  # a logarithmic axis has no negative numbers
    against_full = report(results, "full").tables[2]
    assert {row[0]: row[1] for row in against_full.rows}["tova"].startswith("+0.0667")


def test_order_of_the_operators_on_the_real_weights(smollm, gguf_path, figure):
    """On a page of the docs every operator is worse than the unbounded model, and the window without a sink is the worst."""
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    page_chunks = split_into_chunks({"docs": page}, converters.tokenizer(gguf_path), 192, 1)
    found = {
        str(c): score_chunks(smollm, page_chunks, c)[0].mean
        for c in parse_conditions(["full", "window", "sinks:SIZE:1", "tova"], [32])
    }
    figure(f"192 tokens of the docs, nats per token: {', '.join(f'{k} {v:.3f}' for k, v in found.items())}")
    assert found["full"] < found["tova:32"] < found["window:32"]
    assert found["full"] < found["sinks:32:1"] < found["window:32"] - 0.2

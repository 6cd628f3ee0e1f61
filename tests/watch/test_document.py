"""The JSON document: its numbers are those of the trace, within the stated errors."""

import json

import numpy as np
import pytest
import torch
from support.tiny_families import tiny_family
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.reductions.registry import parse_reduction
from msrnn.watch.codes import PRECISIONS
from msrnn.watch.document import build_document
from msrnn.watch.observe import observe
from msrnn.watch.read import read_document
from msrnn.watch.run import observe_run, predictions_differ, texts_differ

PROMPT = 'the boat </script> was "small" & the sea was not'
CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
IDS = TOKENIZER.encode(PROMPT).ids


def written(tmp_path, cell, ids, specs, max_new_tokens=6, precision=PRECISIONS[0]):
    runs = [observe_run(cell, ids, parse_reduction(spec), max_new_tokens) for spec in specs]
    path = tmp_path / "page.json"
    path.write_text(json.dumps(build_document(runs, TOKENIZER, "tiny", len(ids), cell.config.n_heads, precision)))
    return runs, *read_document(path)


@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[3]])
@pytest.mark.parametrize(
    "spec",
    ["tova:6", "tova-head:6", "h2o:6", "h2o-layer:6", "h2o:full/6", "window:6", "sinks:6:2", "knorm:6", "full", "tova:900"],
)
def test_numbers_are_those_of_the_trace(spec, precision, tmp_path):
    (run,), document, (read,) = written(tmp_path, CELL, IDS, [spec], precision=precision)
    tokens = torch.tensor([run.ids])
    logits, trace = CELL.scan(tokens, CELL.initial_state(1, spec), weights=True)
    observed = observe(CELL, tokens, CELL.initial_state(1, spec))[1]
    assert read.operator == spec
    assert read.ids == run.ids
    assert document["prompt_tokens"] == len(IDS)
    T, factor, plane = len(run.ids), 2 ** (0.5 / precision.steps) * (1 + 1e-6), 0
    for l, planes in enumerate(read.planes):
        for h, found in enumerate(planes):
            layer = observed[l]
            assert np.array_equal(found.evicted, trace[l].left[0, h].numpy())
            held = {p for p in range(T) if found.visible[T - 1, p] and p != found.evicted[T - 1]}
            state = trace.at(T)[l].positions[0, h]
            assert held == set(state[state >= 0].tolist())
            exact = layer.weights[h].numpy()
            assert np.array_equal(found.visible, layer.visible[h].numpy())
            large = found.visible & (exact >= precision.threshold)
            assert (np.abs(np.log(found.weights[large] / exact[large])) <= np.log(factor)).all()
            assert (found.weights[~large] == 0).all()
            score = trace[l].scores[0, min(h, trace[l].scores.shape[1] - 1)].numpy()
            if spec == "full" or (spec == "h2o:full/6" and h == 0):
                assert found.scores is None
                plane += 1
                continue
            assert np.array_equal(np.isnan(found.scores), np.isnan(score))
            kind, finite = document["runs"][0]["planes"][plane], np.isfinite(score)
            assert np.array_equal(found.scores[~finite & ~np.isnan(score)], score[~finite & ~np.isnan(score)])
            if kind["kind"] == "linear":
                assert np.abs(found.scores[finite] - score[finite]).max() <= kind["unit"] / 2 + 1e-9
            else:
                some = finite & (score >= precision.threshold * (1 if kind["kind"] == "attention" else kind["high"]))
                assert (np.abs(np.log(found.scores[some] / score[some])) <= np.log(factor)).all()
            for t in np.flatnonzero(found.evicted >= 0):
                assert read.arrays["evicted_score"][plane, t] == pytest.approx(score[t, found.evicted[t]], rel=2**-12)
            plane += 1
    top = logits[0].float().softmax(-1).topk(8)
    assert np.array_equal(read.arrays["top_ids"], top.indices.numpy())
    assert np.allclose(read.arrays["top_probabilities"], top.values.numpy(), rtol=2**-12)
    expected = logits[0].float().softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    assert np.allclose(read.arrays["next_probability"][:-1], expected.numpy(), rtol=2**-12)


def test_heads_that_decide_for_themselves_have_one_plane_each(tmp_path):
    _, document, (layer, head) = written(tmp_path, CELL, IDS, ["tova:6", "tova-head:6"])
    assert [len(planes) for planes in layer.planes] == [1, 1]
    assert [len(planes) for planes in head.planes] == [2, 2]
    assert document["runs"][1]["layers"][0] == {"operator": "tova-head:6", "size": 6, "heads": 2}


def test_layers_with_other_operators(tmp_path):
    cell = tiny_family("gemma2", vocab_size=TOKENIZER.get_vocab_size())
    _, document, (run,) = written(tmp_path, cell, IDS[:20], ["tova:6"])
    assert [layer["operator"] for layer in document["runs"][0]["layers"]] == ["window:3", "tova:6", "window:3"]
    assert [planes[0].visible[-1].sum() for planes in run.planes] == [4, 7, 4]


def test_learned_rows_are_left_out(tmp_path):
    """Granite with windows has a learned row per head, which takes part of the attention and is never evicted."""
    cell = tiny_family("granite_swa", vocab_size=TOKENIZER.get_vocab_size())
    _, _, (run,) = written(tmp_path, cell, IDS[:20], ["tova:6"], max_new_tokens=0)
    _, trace = cell.scan(torch.tensor([IDS[:20]]), cell.initial_state(1, "tova:6"), weights=True)
    for planes, layer in zip(run.planes, trace, strict=True):
        assert layer.rows.shape[2] == 21
        assert planes[0].weights[-1].sum() < 0.99
        assert np.array_equal(planes[0].evicted, layer.left[0, 0].numpy())
        score = layer.scores[0, 0, :, 1:].numpy()
        assert np.array_equal(np.isnan(planes[0].scores), np.isnan(score))
        some = score > PRECISIONS[0].threshold  # windows score 0
        assert some.any() == (layer is trace[0])
        assert np.allclose(planes[0].scores[some], score[some], rtol=0.05)


def test_the_texts_are_those_of_the_tokens(tmp_path):
    _, document, (run,) = written(tmp_path, CELL, IDS, ["tova:6"], max_new_tokens=0)
    assert run.ids == IDS
    assert "".join(document["texts"][str(i)] for i in run.ids) == f"<s>{PROMPT}"


def test_two_operators_and_where_they_differ(tmp_path):
    runs, document, _ = written(tmp_path, CELL, IDS, ["full", "window:2", "full"], max_new_tokens=12)
    a, b = runs[0].ids, runs[1].ids
    first = next(p for p in range(len(a)) if a[p] != b[p])
    assert first >= len(IDS)
    assert document["texts_differ"] == [[None, first, None], [first, None, first], [None, first, None]]
    predicted = [[int(row[0]) for row in run.top_ids] for run in runs]
    step = next(t for t in range(first) if predicted[0][t] != predicted[1][t])
    assert step < first
    assert document["predictions_differ"][0] == [None, step, None]


def test_a_text_that_ends_before_another_differs_from_it():
    (one,) = [observe_run(CELL, IDS[:9], msrnn.Full(), 0)]
    other = observe_run(CELL, IDS[:12], msrnn.Full(), 0)
    assert texts_differ(one, other) == texts_differ(other, one) == 9
    assert predictions_differ(one, other) is None


@pytest.mark.parametrize("text", ['{"format": "other"}', '{"format": "msrnn-watch", "version": 2}'])
def test_other_documents_are_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(msrnn.Error, match="expected 'msrnn-watch', version 1"):
        read_document(tmp_path / "x.json")


@pytest.mark.parametrize("field", ["precision", "runs", "layers", "planes", "weights", "ids"])
def test_a_document_without_a_field_is_refused(field, tmp_path):
    _, document, _ = written(tmp_path, CELL, IDS, ["tova:6"])
    for part in (document, document["runs"][0]):
        part.pop(field, None)
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(msrnn.Error, match=r"x\.json.*cannot be read.*expected a file of msrnn watch"):
        read_document(tmp_path / "x.json")


def test_an_empty_prompt_is_refused():
    with pytest.raises(msrnn.Error, match="the prompt has no tokens"):
        observe_run(CELL, [], msrnn.Full(), 3)

"""Calibration against plain loops on a tiny cell, and the command."""

import math

import pytest
import torch
from support.tiny_models import ROPES, random_tokens, tiny_cell
from support.tiny_tokenizer import chat_cell

import msrnn
from msrnn.calibration import calibrate as module
from msrnn.calibration import scorer
from msrnn.calibration.calibrate import KINDS, calibrate
from msrnn.calibration.queries import _mean_rotation
from msrnn.calibration.reading import read_layers
from msrnn.cli.main import main
from msrnn.layers.rotary import apply_rotary

TEXTS = list(random_tokens(3, 2, 90))


def test_readings_are_those_of_a_step_loop():
    cell, tokens, position = tiny_cell(), TEXTS[0][:12], torch.arange(12)
    x = cell.embed_tokens(tokens, position)
    for reading, layer in zip(read_layers(cell, tokens), cell.layers, strict=True):
        torch.testing.assert_close(reading.x, x)
        q, k, v = layer.project_qkv(x, cell.config.rope.cos_sin(position, 6, x.dtype))
        torch.testing.assert_close(reading.queries.flatten(0, 1), q.transpose(0, 1))
        torch.testing.assert_close(reading.keys, k.transpose(0, 1))
        rows = []
        for t in range(12):
            heads = [(q[t, n] @ k[: t + 1, n // 2].T / math.sqrt(6)).softmax(-1) @ v[: t + 1, n // 2] for n in range(4)]
            rows.append(torch.stack(heads))
        x = layer.post_attention(x, torch.stack(rows))
    assert not any(layer._forward_pre_hooks for layer in cell.layers)


def test_q_filters_are_the_first_singular_vectors_of_the_queries():
    cell = tiny_cell()
    filters = calibrate(cell, TEXTS, "q-filters").constants.tensors["filters"]
    for l in range(2):
        queries = torch.cat([list(read_layers(cell, tokens))[l].queries for tokens in TEXTS], dim=2)  # (K, G, T, D)
        for k in range(2):
            vectors = []
            for q in queries[k]:
                first = torch.linalg.svd(q).Vh[0]
                vectors.append(first if (q @ first).mean() > 0 else -first)
            torch.testing.assert_close(filters[l, k], torch.stack(vectors).mean(0).float())


def test_expected_attention_has_mean_and_covariance_of_unrotated_queries():
    cell, L = tiny_cell(), 2
    constants = calibrate(cell, TEXTS, "expected-attention").constants.tensors
    readings = [list(read_layers(cell, tokens)) for tokens in TEXTS]
    cos_sin = cell.config.rope.cos_sin(torch.arange(1, 513), 6, torch.float64)
    for l in range(L):
        q = torch.cat([cell.layers[l].project_qkv(r[l].x, None)[0][4:] for r in readings]).transpose(0, 1)  # (N, T, D)
        for n in range(4):
            mean = apply_rotary(q[n].mean(0).expand(512, 1, 6), cos_sin).mean((0, 1)) / math.sqrt(6)
            torch.testing.assert_close(constants["mean"][l, n], mean.float())
            basis = apply_rotary(torch.eye(6, dtype=torch.float64).expand(512, 6, 6), cos_sin).mean(0)  # rows: R e_i
            torch.testing.assert_close(constants["covariance"][l, n], (basis.T @ torch.cov(q[n].T) @ basis / 6).float())
        torch.testing.assert_close(constants["frequencies"][l], (100.0 ** -(torch.arange(0, 6, 2) / 6)).float())
    turned = _mean_rotation(torch.tensor([0.5], dtype=torch.float64), 2.0) @ torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert turned.tolist() == pytest.approx([2 * sum(f(0.5 * n) for n in range(1, 513)) / 512 for f in (math.cos, math.sin)])


def test_targets_of_the_learned_score():
    cell, T = tiny_cell(sliding_window=50), 90
    for reading in read_layers(cell, TEXTS[0]):
        targets = scorer.attention_targets(reading)
        assert targets.shape == (T - 64, 2)
        for k in range(2):
            for j in (0, 11, 25):
                largest = 1e-6
                for i in range(j + 32, min(T, j + 50)):
                    first = max(0, i - 49)  # a window of 50 tokens
                    for g in range(2):
                        z = [float(reading.queries[k, g, i] @ reading.keys[k, p]) / math.sqrt(6) for p in range(first, i + 1)]
                        largest = max(largest, math.exp(z[j - first]) / math.fsum(map(math.exp, z)))
                assert float(targets[j, k]) == pytest.approx(math.log(largest), rel=1e-4)


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_score_that_the_input_determines_is_learned(hidden, monkeypatch):
    """The targets are replaced by a function of the input, which is predicted on the held-out text too."""
    direction = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))

    def target(reading):
        x = reading.x[:-64].float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) @ direction

    monkeypatch.setattr(scorer, "attention_targets", target)
    monkeypatch.setattr(scorer, "RATE", 0.01)
    texts = list(random_tokens(5, 5, 180))
    done = calibrate(tiny_cell(), texts, "learned-score", hidden=hidden, epochs=60)
    assert done.explained > (0.99 if hidden == 0 else 0.9)
    if hidden:
        assert calibrate(tiny_cell(), texts, "learned-score", hidden=hidden, epochs=60).constants == done.constants
    monkeypatch.setattr(scorer, "attention_targets", lambda reading: torch.randn(len(reading.x) - 64, 2))
    assert calibrate(tiny_cell(), texts, "learned-score").explained < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_constants_run_and_belong_to_the_cell(kind, tmp_path):
    cell = tiny_cell()
    calibrate(cell, TEXTS, kind).constants.save(tmp_path / "c.safetensors")
    spec = f"{kind}:6:{tmp_path / 'c.safetensors'}"
    logits, _ = cell(random_tokens(1, 2, 30), cell.initial_state(2, spec))
    assert logits.isfinite().all()
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_cell(seed=1).initial_state(1, spec)


@pytest.mark.parametrize(
    ("texts", "kind", "cell", "message"),
    [
        (TEXTS, "q-filter", {}, r"'q-filter' has no constants \(did you mean 'q-filters'\?\); expected one of q-filters"),
        (TEXTS, "tova", {}, "'tova' has no constants; expected one of q-filters"),
        ([], "q-filters", {}, "no texts"),
        (TEXTS[:1], "learned-score", {}, "1 text; expected at least 2"),
        ([TEXTS[0][:64]] * 2, "learned-score", {}, "64 tokens; expected more than 64"),
        ([TEXTS[0], TEXTS[1][:4]], "expected-attention", {}, "a text has 4 tokens; expected more than 4"),
        ([TEXTS[0][:0]], "q-filters", {}, r"a text is int64 of shape \(0,\); expected ids \(T,\) int64, at least one"),
        ([TEXTS[0][None]], "q-filters", {}, r"a text is int64 of shape \(1, 90\)"),
        (TEXTS, "expected-attention", {"rope": ROPES["dynamic"]}, "positions of DynamicNTKRope"),
    ],
)
def test_refusals(texts, kind, cell, message):
    with pytest.raises(msrnn.Error, match=message):
        calibrate(tiny_cell(**cell), texts, kind)


def test_the_command_writes_a_file_that_a_spec_string_names(tmp_path, monkeypatch, capsys):
    chat_cell().save(tmp_path / "tiny")
    text, out = tmp_path / "text.txt", tmp_path / "filters.safetensors"
    text.write_text("The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 20)
    common = ["calibrate", str(tmp_path / "tiny"), "--text", str(text), "--chunk", "80", "--chunks", "2", "-o", str(out)]
    for kind, more in (("q-filters", []), ("learned-score", ["--hidden", "4", "--epochs", "1"])):
        assert main([*common, "--reduction", kind, *more]) == 0
        printed = capsys.readouterr().out
        spec = printed.splitlines()[-1].replace("SIZE", "8")
        assert spec.startswith(f"{kind}:8:{out}@")
        assert msrnn.parse_reduction(spec).size == 8
    assert "held out" in printed
    before = out.read_bytes()
    for wrong, message in [
        (["--reduction", "q-filters", "--hidden", "3"], "--hidden is an option of learned-score"),
        (["--reduction", "learned-score", "--epochs", "3"], "it needs --hidden"),
        (["--reduction", "q-filters", "--chunk", "100000"], "the longest text has"),
    ]:
        assert main([*common, *wrong]) == 1
        assert message in capsys.readouterr().err

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "q_filters", interrupt)
    assert main([*common, "--reduction", "q-filters"]) == 130
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {text.name, out.name, "tiny"}

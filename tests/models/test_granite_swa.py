"""Tests of learned attention sinks: one more logit per query head, stored as a learned row."""

import pytest
import torch
from support import eviction_rules
from support.naive_families import naive_decoder
from support.tiny_families import tiny_family
from support.tiny_models import assert_close, random_tokens, retained_positions, rows_by_position, step_loop
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli.main import main
from msrnn.models.granite import Granite
from msrnn.reductions.contract import LEARNED

T = 14


def with_sinks(values, seed=0, **fields):
    """Return a cell with these sinks ``(N,)`` in every layer."""
    cell = tiny_family("granite_swa", seed, **fields)
    for layer in cell.layers:
        layer.sinks.data.copy_(torch.tensor(values, dtype=torch.float64))
    return cell


def test_the_sink_is_one_learned_row_with_value_zero():
    cell = tiny_family("granite_swa")
    for H in cell.initial_state(2, "tova:4"):
        assert H.positions.tolist() == [[[LEARNED]] * 2] * 2
        assert H.n_learned == 1
        assert H.capacity == H.reduction.size + 1
        assert H.keys[..., 0, :].tolist() == [[[0.0] * 6 + [1.0]] * 2] * 2
        assert not H.values.any()


def test_size_does_not_count_the_sink():
    cell = tiny_family("granite_swa")
    _, state = cell(random_tokens(1, 1, T), cell.initial_state(1, "all-layers:tova:4"))
    assert [H.keys.shape[2] for H in state] == [5] * 3
    assert all(len(head) == 5 and head[0] == LEARNED for layer in retained_positions(state) for row in layer for head in row)


def test_the_sink_row_never_changes():
    cell, state = tiny_family("granite_swa"), None
    for t in range(T):
        _, state = cell.step(random_tokens(2, 1, T)[:, t], state)
    for H in state:
        for head in rows_by_position(H, 0):
            assert head["positions"][0] == LEARNED
            assert head["keys"][0].tolist() == [0.0] * 6 + [1.0]
            assert not head["values"][0].any()


def test_a_sink_of_minus_infinity_is_granite():
    sunk, text = with_sinks([-1e4] * 4), random_tokens(3, 2, T)
    plain = Granite(sunk.config).double()
    plain.load_state_dict({name: x for name, x in sunk.state_dict().items() if "sinks" not in name})
    for spec in (None, "tova:4", "h2o:4"):
        ours, theirs = (cell(text, cell.initial_state(2, spec))[0] for cell in (sunk, plain))
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("spec", "rule"), [("tova:4", lambda: eviction_rules.tova(4)), ("h2o:4", lambda: eviction_rules.h2o(4, 2))]
)
def test_operators_see_weights_without_the_share_of_the_sink(spec, rule):
    """The sinks of two heads take nearly everything, so other rows are evicted than without the sinks."""
    cell, text = with_sinks([9.0, -9.0, 9.0, -9.0]), random_tokens(4, 1, T)
    expected, after, mass = naive_decoder(cell, text[0].tolist(), [rule() for _ in range(3)])
    logits, state = step_loop(cell, text, cell.initial_state(1, f"all-layers:{spec}"))
    assert_close(logits[0], expected)
    found = [[[p for p in head if p >= 0] for head in layer[0]] for layer in retained_positions(state)]
    assert found == after[-1]
    assert max(max(layers) for layers in mass) < 3  # of 4 heads
    other = with_sinks([-9.0] * 4)
    _, state = other(text, other.initial_state(1, f"all-layers:{spec}"))
    assert [[[p for p in head if p >= 0] for head in layer[0]] for layer in retained_positions(state)] != after[-1]


def test_scores_of_a_trace_add_up_to_less_than_one():
    """TOVA's score of a row is the mean weight over the query heads; the rest is the share of the sinks."""
    cell, text = tiny_family("granite_swa"), random_tokens(5, 1, T)
    _, trace = cell.scan(text, cell.initial_state(1, "all-layers:tova:4"), weights=True)
    _, _, mass = naive_decoder(cell, text[0].tolist(), [eviction_rules.tova(4) for _ in range(3)])
    for l, layer in enumerate(trace):
        scores = torch.where(layer.scores.isfinite(), layer.scores, 0)[0, 0]
        for t in range(T):
            tokens = scores[t][(layer.rows[0, 0] >= 0) & (layer.rows[0, 0] <= t)]
            assert abs(float(tokens.sum()) - mass[t][l] / 4) < 1e-9
            assert mass[t][l] / 4 < 1


@pytest.mark.parametrize("places", ["inside", "compressed"])
def test_remapped_positions_are_refused(places):
    with pytest.raises(msrnn.Error, match=f"places are '{places}'; expected 'absolute', because this cell has learned sinks"):
        tiny_family("granite_swa").initial_state(1, places=places)


def test_an_evaluation_with_remapped_positions_is_refused_before_any_work(tmp_path, capsys):
    cell = tiny_family("granite_swa", dtype=torch.float32, vocab_size=tiny_tokenizer().get_vocab_size(), context_length=4096)
    cell.extra_files = chat_cell(TEMPLATES["ChatML"]).extra_files
    cell.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the end of the other end is the end of it all and more " * 8)
    command = [
        "eval",
        "extrapolation",
        str(tmp_path / "model"),
        "--text",
        str(tmp_path / "text.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--tokens", "16", "--stretch", "8", "--operators", "tova", "--sizes", "4"]
    assert main(command) == 1
    assert "places are 'inside'; expected 'absolute', because this cell has learned sinks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--places", "absolute"]) == 0

"""Position remapping against a decoder in complex numbers that rotates all rows again at every token, and transformers."""

import cmath
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file
from support.cell_strategies import cells, examples
from support.eviction_rules import full, h2o, sinks, tova, tova_head, window
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell
from support.transformers_reference import float64_reference, tiny_reference

import converters
import msrnn
from msrnn.layers.rotary import DynamicNTKRope, Rope, YarnRope
from msrnn.models import Decoder, DecoderConfig
from msrnn.state.position_remapping import RULES, PositionRemapping

BOTH = ("inside", "compressed")
OTHERS = ["random:5", "last-queries:6:2", "morphkv:6:3", "scissorhands:7:3", "keyformer:6", "keydiff:5", "cam:6:1:2"]


def stand(places, positions):
    """Where rows at ``positions``, in order, stand."""
    if places == "inside":
        return list(range(len(positions)))
    where = [0.0]
    for i in range(1, len(positions)):
        gap = positions[i] - positions[i - 1]
        where.append(where[-1] + (math.log(math.log(gap)) if gap > 10 else gap))
    return where


def turn(x, place, rope):
    """A head ``(D,)`` as complex numbers, pair i turned by place · f_i."""
    half, theta = len(x) // 2, rope.theta
    if isinstance(rope, DynamicNTKRope):
        longer = max(place + 1, rope.original_length) / rope.original_length
        theta *= (rope.factor * longer - (rope.factor - 1)) ** (2 * half / (2 * half - 2))
    return [complex(x[i], x[half + i]) * cmath.rect(1, place * theta ** (-i / half)) for i in range(half)]


def naive(cell, text, rule, places):
    """One text ``(T,)`` -> logits ``(T, V)`` and ``after[t][layer][head]``, the positions carried; ``rule`` as in
    ``test_operators``. A row is (position, key as it was made, value)."""
    c = cell.config
    K, G, D = c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim
    rules, H = [rule(l) for l in range(c.n_layers)], [[[] for _ in range(K)] for _ in range(c.n_layers)]
    logits, after = [], []

    def norm(x, gain):
        return x / (x.pow(2).mean() + c.norm_eps).sqrt() * gain

    for t, token in enumerate(text):
        x = cell.embed.weight[token]
        for l, layer in enumerate(cell.layers):
            normed, read, seen = norm(x, layer.attention_norm.weight), [], []
            q, k, v = ((m.weight @ normed).view(-1, D) for m in (layer.q, layer.k, layer.v))
            for h in range(K):
                H[l][h].append((t, k[h].tolist(), v[h]))
                where = stand(places, [p for p, _, _ in H[l][h]])
                met = [turn(key, place, c.rope) for place, (_, key, _) in zip(where, H[l][h], strict=True)]
                weights = []
                for g in range(G):
                    own = turn(q[h * G + g].tolist(), where[-1], c.rope)
                    scores = [sum((a * b.conjugate()).real for a, b in zip(own, m, strict=True)) / math.sqrt(D) for m in met]
                    weights.append(torch.tensor(scores, dtype=torch.float64).softmax(-1))
                    read.append(sum(w * value for w, (_, _, value) in zip(weights[-1], H[l][h], strict=True)))
                seen.append({p: [w[i].item() for w in weights] for i, (p, _, _) in enumerate(H[l][h])})
            carried = rules[l](t, seen)
            H[l] = [[row for row in rows if row[0] in stay] for rows, stay in zip(H[l], carried, strict=True)]
            x = x + layer.o.weight @ torch.cat(read)
            normed = norm(x, layer.ffn_norm.weight)
            gate = layer.gate.weight @ normed
            x = x + layer.down.weight @ (gate * gate.sigmoid() * (layer.up.weight @ normed))
        logits.append((cell.embed if c.tied else cell.head).weight @ norm(x, cell.norm.weight))
        after.append([[[p for p, _, _ in rows] for rows in layer] for layer in H])
    return torch.stack(logits), after


CASES = {
    "full": ("full", full),
    "window:5": ("window:5", lambda: window(5)),
    "sinks:6:2": ("sinks:6:2", lambda: sinks(6, 2)),
    "tova:6": ("tova:6", lambda: tova(6)),
    "tova-head:5": ("tova-head:5", lambda: tova_head(5)),
    "h2o:7": ("h2o:7", lambda: h2o(7, 3)),
    "h2o-layer:7": ("h2o-layer:7", lambda: h2o(7, 3, True)),
}


@pytest.mark.parametrize("rope", ["default", "dynamic"])
@pytest.mark.parametrize("places", BOTH)
@pytest.mark.parametrize(("operator", "rule"), CASES.values(), ids=CASES)
def test_places_are_what_the_list_of_rows_says(operator, rule, places, rope):
    cell, text = tiny_cell(rope=ROPES[rope]), random_tokens(3, 1, 30)
    state, logits, history = cell.initial_state(1, operator, places=places), [], []
    for token in text.T:
        read, state = cell.step(token, state)
        logits.append(read[0])
        history.append([layer[0] for layer in retained_positions(state)])
    expected, after = naive(cell, text[0].tolist(), lambda l: rule(), places)
    assert history == after
    assert_close(torch.stack(logits), expected)
    absolute, _ = cell(text, cell.initial_state(1, operator))
    if operator not in ("full", "window:5"):  # there no gap opens
        assert (absolute[0] - expected).abs().max() > 1e-3
        other, _ = cell(text, cell.initial_state(1, operator, places=BOTH[places == "inside"]))
        assert (other[0] - expected).abs().max() > 1e-3


def test_gaps_shrink_as_the_paper_says():
    positions = torch.tensor([[[30, -1, 3, 14, 4, 500, 40, -1, 41]]])
    places = PositionRemapping("compressed", Rope(100.0)).remapped_positions(positions, torch.float64)[0, 0].tolist()
    lnln = [math.log(math.log(gap)) for gap in (16, 459)]  # 14 → 30 and 41 → 500; 10 stays 10
    first, second = lnln
    expected = [11 + first, 0, 11, 1, 22 + first + second, 21 + first, 22 + first]
    assert [p for p, at in zip(places, positions[0, 0].tolist(), strict=True) if at >= 0] == pytest.approx(expected)
    inside = PositionRemapping("inside", Rope(100.0)).remapped_positions(positions, torch.float64)[0, 0]
    assert inside[positions[0, 0] >= 0].tolist() == [3, 0, 2, 1, 6, 4, 5]
    assert RULES["compressed"](torch.tensor([10.0, 11.0])).tolist() == pytest.approx([10, math.log(math.log(11))])


@pytest.mark.parametrize("places", BOTH)
@pytest.mark.parametrize("operator", ["sinks:5:2", "tova:5", "h2o-layer:5"])
def test_one_layer_is_transformers_reading_the_rows_alone(operator, places):
    """In one layer a key depends on its token alone: so transformers reads the kept tokens as a text of their own, at the
    places as positions."""
    model = tiny_reference(num_hidden_layers=1)
    cell, text = converters.load(model), random_tokens(2, 1, 40, 61)
    state, widest = cell.initial_state(1, operator, places=places), 0
    with float64_reference(model), torch.no_grad():
        for t, token in enumerate(text.T):
            rows = [*retained_positions(state)[0][0][0], t]
            widest = max([widest, *(b - a for a, b in pairwise(rows))])
            where = torch.tensor([stand(places, rows)], dtype=torch.float64)
            alone = model(text[:, rows], position_ids=where).logits[:, -1]
            logits, state = cell.step(token, state)
            assert_close(logits, alone)
    assert widest > 10


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_an_unbounded_state_counted_inside_is_as_it_was(rope):
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 20)
    whole, _ = cell(text, cell.initial_state(2, "full"))
    for places in BOTH:
        logits, state = cell(text, cell.initial_state(2, "full", places=places))
        assert_close(logits, whole)
        assert_close(step_loop(cell, text, cell.initial_state(2, "full", places=places))[0], whole)
        assert state[0].positions[0, 0].tolist() == list(range(20))


@given(st.data())
@examples(15)
def test_reading_is_the_step_loop(data):
    """However the text is split, ragged, saved on the way, traced, in place; of any operator."""
    cell, B, reduction = data.draw(cells())
    reduction = data.draw(st.sampled_from([reduction, *OTHERS]))
    start = cell.initial_state(B, reduction, places=data.draw(st.sampled_from(BOTH)))
    text = random_tokens(data.draw(st.integers(0, 99)), B, T := data.draw(st.integers(1, 18)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    cut = data.draw(st.integers(0, T))
    whole, end = step_loop(cell, text, start, lengths)
    logits, state = cell(text, start, lengths=lengths)
    assert_close(logits, whole, 1e-8)
    assert_same(state, end, 1e-8)
    assert state.places == start.places
    first, middle = cell(text[:, :cut], start, lengths=lengths.clamp(max=cut))
    rest, state = cell(text[:, cut:], middle.clone().select(list(range(B))), lengths=(lengths - cut).clamp(min=0))
    assert_close(torch.cat((first, rest), 1), whole, 1e-8)
    assert_same(state, end, 1e-8)
    seen, trace = cell.scan(text, start, lengths=lengths)
    assert_close(seen, whole, 1e-8)
    assert_same(trace.at(T), end, 1e-8)
    assert_same(trace.at(cut), middle, 1e-8)
    moving = start.clone()
    for t in range(T):
        _, moving = cell.step_(text[:, t].masked_fill(t >= lengths, 0), moving, active=t < lengths)
    assert_same(moving, end, 1e-8)
    token, before = text[:, 0], end.clone()
    cell(text, end)
    assert_same(end, before)  # which has room that a fold in place would write to
    assert_close(cell.step(token, trace.at(T))[0], cell.step(token, end)[0], 1e-8)


@pytest.mark.parametrize("rope", [ROPES["default"], ROPES["yarn"]], ids=["default", "yarn"])
@pytest.mark.parametrize("operator", ["window:0", "window:5", "sinks:6:2", "random:9", "full"])
def test_operators_that_need_not_look_are_read_in_blocks(operator, rope, monkeypatch):
    """Most distances are those in the text; the rest are taken one by one. Longer than a block, ragged, and on from it."""
    monkeypatch.setattr("msrnn.state.position_remapping.MAX_KEY_ELEMENTS", 64 * 2 * 2 * 6 * 4)  # four rows of a block at a time
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 70)
    for places in BOTH:
        start = cell.initial_state(2, operator, places=places)
        whole, end = step_loop(cell, text, start)
        logits, state = cell(text, start)
        assert_close(logits, whole, 1e-8)
        assert_same(state, end, 1e-8)
        some, _ = cell(text, start, lengths=torch.tensor([70, 33]))
        assert_close(some[1, :33], whole[1, :33], 1e-8)
        seen, trace = cell.scan(text, start)
        assert_close(seen, whole, 1e-8)
        assert_same(trace.at(70), end, 1e-8)
        rest, after = cell(text[:, 50:], trace.at(50))
        assert_close(rest, whole[:, 50:], 1e-8)
        assert_same(after, end, 1e-8)


def test_nobody_looks_token_by_token_without_need(monkeypatch):
    asked, turned = [], PositionRemapping.rotate
    monkeypatch.setattr(PositionRemapping, "rotate", lambda *all: asked.append(1) or turned(*all))
    for operator, rope, needed in (
        ("sinks:6:2", "default", 0),
        ("random:6", "yarn", 0),
        ("sinks:6:2", "dynamic", 40),
        ("tova:6", "default", 40),
        ("keydiff:6", "default", 40),
    ):
        cell = tiny_cell(rope=ROPES[rope])
        cell(random_tokens(3, 1, 20), cell.initial_state(1, operator, places="inside"))
        assert len(asked) == needed, operator
        asked.clear()


@given(st.data())
@examples(8)
def test_guessing_writes_what_plain_decoding_writes(data):
    cell, B, reduction = data.draw(cells())
    reduction = data.draw(st.sampled_from([reduction, *OTHERS]))
    start = cell.initial_state(B, reduction, places=data.draw(st.sampled_from(BOTH)))
    text = random_tokens(data.draw(st.integers(0, 99)), B, 6, vocab=5)
    plain, end = msrnn.generate(cell, text, start, max_new_tokens=12)
    expected, stepped = step_loop(cell, torch.cat((text, plain), 1), start)
    assert plain.equal(expected[:, 5:-1].argmax(-1))
    assert_same(end, stepped, 1e-8)
    for new, state, _ in (
        msrnn.jacobi(cell, text, start, max_new_tokens=12, block=5),
        msrnn.lookahead(cell, text, start, max_new_tokens=12, window=3, ngram=3, guesses=2),
    ):
        assert new.equal(plain)
        assert_same(state, end, 1e-8)
        assert state.places == start.places


@pytest.mark.parametrize("places", BOTH)
def test_gradients_are_the_step_loops(places):
    cell, text = tiny_cell(frozen=False), random_tokens(3, 1, 12)
    found = []
    for read in (cell, lambda tokens, state: step_loop(cell, tokens, state)):
        logits, _ = read(text, cell.initial_state(1, "tova:4", places=places))
        found.append(torch.autograd.grad(logits.logsumexp(-1).sum(), list(cell.parameters())))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-8)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_a_saved_state_keeps_its_places(rope, tmp_path):
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 16)
    _, state = cell(text, cell.initial_state(2, "h2o:5", places="compressed"))
    state.save(tmp_path / "state")
    again = msrnn.load_state(tmp_path / "state")
    assert again.places == state.places == PositionRemapping("compressed", rope)
    assert_same(again, state)
    assert cell.step(text[:, 0], again)[0].equal(cell.step(text[:, 0], state)[0])
    assert "places compressed" in repr(again)
    assert "places" not in repr(cell.initial_state(1))


DAMAGE = ["[", "3", "{}", '{"rule": "inside"}', '{"rule": "outside", "rope": {"rope_type": "default", "theta": 100.0}}']
DAMAGE += [
    '{"rule": "inside", "rope": {"rope_type": "default", "theta": -1}}',
    '{"rule": "inside", "rope": {"rope_type": "spiral"}}',
]


@pytest.mark.parametrize("text", DAMAGE)
def test_damaged_places_are_refused(text, tmp_path):
    tiny_cell().initial_state(1, places="inside").save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        about = file.metadata()
    save_file(load_file(tmp_path / "state"), tmp_path / "state", {**about, "places": text})
    with pytest.raises(msrnn.Error):
        msrnn.load_state(tmp_path / "state")


@pytest.mark.parametrize("places", ["outside", "", "Inside", None, 3, ["inside"], True])
def test_unknown_places_are_refused(places):
    with pytest.raises(msrnn.Error, match=r"places are .*; expected one of absolute, inside, compressed"):
        tiny_cell().initial_state(1, places=places)


def test_a_cell_that_rotates_nothing_has_no_places(monkeypatch):
    monkeypatch.setattr(msrnn.models.Llama, "rope", None)
    assert tiny_cell().initial_state(1).places is None
    with pytest.raises(msrnn.Error, match="no rotary positions"):
        tiny_cell().initial_state(1, places="inside")


def test_a_decoder_has_places_where_it_has_a_rope():
    facts = {"vocab_size": 50, "width": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "ffn_width": 32}
    torch.manual_seed(0)
    cell = Decoder(DecoderConfig(**facts, context_length=40, positions=ROPES["default"])).double().eval().requires_grad_(False)
    text = random_tokens(3, 1, 20)
    whole, _ = step_loop(cell, text, cell.initial_state(1, "full", places="inside"))
    assert_close(whole, cell(text)[0])
    start = cell.initial_state(1, "tova:5", places="compressed")
    assert_close(cell(text, start)[0], step_loop(cell, text, start)[0], 1e-8)
    for positions in ("alibi", "learned", "sinusoidal"):
        other = Decoder(DecoderConfig(**facts, context_length=40, positions=positions))
        with pytest.raises(msrnn.Error, match="no rotary positions"):
            other.initial_state(1, places="inside")


def test_sixteen_bits_are_read_in_sixteen_bits():
    cell, text = tiny_cell(dtype=torch.bfloat16), random_tokens(3, 1, 20)
    logits, state = cell(text, cell.initial_state(1, "sinks:6:2", places="inside"))
    wide, _ = tiny_cell()(text, tiny_cell().initial_state(1, "sinks:6:2", places="inside"))
    assert logits.dtype == state[0].keys.dtype == torch.bfloat16
    assert (logits - wide).abs().mean() < 0.1


def test_a_gain_counts_once():
    """YaRN's gain is on cos and sin: keys that are kept unrotated are kept without it."""
    cell = tiny_cell(rope=YarnRope(100.0, 4.0, 16, 1.1, 2.0, 0.5))
    plain = tiny_cell(rope=YarnRope(100.0, 4.0, 16, 1.0, 2.0, 0.5))
    key, other = (c.step(torch.tensor([3]), c.initial_state(1, places="inside"))[1][0].keys for c in (cell, plain))
    assert key.equal(other)


@pytest.mark.parametrize("places", BOTH)
def test_learned_rows_stand_nowhere(places):
    """They are read as they are and not counted; step, fold and trace agree about it."""
    cell, text = tiny_cell(rope=ROPES["yarn"]), random_tokens(3, 2, 25)
    positions = torch.tensor([[-2, -2, 20, -1, 4, 5]]).expand(2, 2, 6)
    q, keys = torch.randn(2, 4, 6).double(), torch.randn(2, 2, 6, 6).double()
    turned, met = PositionRemapping(places, ROPES["yarn"]).rotate(q, keys, positions, n_learned=2)
    assert met[:, :, :2].equal(keys[:, :, :2])
    alone, rest = PositionRemapping(places, ROPES["yarn"]).rotate(q, keys[:, :, 2:], positions[:, :, 2:])
    assert turned.equal(alone)
    assert met[:, :, 2:].equal(rest)
    start = cell.initial_state(2, "h2o:5", places=places)
    rows = {"keys": keys[:, :, :2], "values": keys[:, :, 2:4], "positions": positions[:, :, :2]}
    rows |= {"accumulated_attention": torch.zeros(2, 2, 2).double()}
    start = start.with_layers(replace(H.with_rows(rows, H.clock, no_empty_rows=True), n_learned=2) for H in start)
    whole, end = step_loop(cell, text, start)
    logits, state = cell(text, start)
    seen, trace = cell.scan(text, start)
    for read, after in ((logits, state), (seen, trace.at(25))):
        assert_close(read, whole, 1e-8)
        assert [H.positions.sort().values.tolist() for H in after] == [H.positions.sort().values.tolist() for H in end]
    assert (cell(text, cell.initial_state(2, "h2o:5", places=places))[0] - whole).abs().max() > 1e-3

"""A cell on two ranks: files, decoding, gradients, bytes of messages, packed weights, and what is refused."""

import copy

import pytest
import torch
from support.rank_groups import run_ranks
from support.split_cells import LayerMaximum, has_rows_of, largest_gap, refusal, text
from support.tiny_families import tiny_family
from torch.nn.functional import cross_entropy

import msrnn
from msrnn.distributed.gradient_norm import clip_split_gradients_
from msrnn.distributed.ranks import TRAFFIC
from msrnn.models.loading import build_frozen
from msrnn.models.packing import pack_tensors
from msrnn.storage.lazy_tensors import LazyTensor

TRAINED = {"llama": "tova:6", "qwen3": "h2o:6", "qwen2 shared head": "tova:6", "olmo2 shared head": "full", "granite_swa": None}
TRAINED |= {"llama, sizes": "tova-head:5/3", "llama, budget": "shared:tova-head:5"}
FILES = {
    **{"tova": "tova:6", "user": LayerMaximum(6), "h2o": "h2o:6"},
    **{"sizes per head": "h2o:7/4", "an unbounded head": "sinks:4/full:1", "shared": "shared:floor=0:h2o:6"},
}
SIZE, BATCH = 5, 2
BUDGETS = ("h2o:7/4", "last-queries:3/full:2", "shared:floor=0:tova-head:5", "shared:last-queries:5:2")
SENT = {"full": 0, "window:5": 0, "h2o:5": 0, "tova-head:5": 0, "tova-head:5/3": 0, "tova:5": 1, "h2o-layer:5": 1}
"""Numbers of scores per row, token and layer that a rank contributes."""


def run_cases(rank, folder):
    group = torch.distributed.group.WORLD
    whole = tiny_family("llama", n_layers=2, vocab_size=51)
    split = msrnn.distribute(whole)
    return {
        **files(whole, split, folder, group),
        **decoding(whole, split, rank),
        **{f"gradients of {name}": gradients(name) for name in TRAINED},
        **{f"bytes of {spec}": sent_bytes(split, spec) for spec in SENT},
        **{spec: uneven_heads(whole, split, spec) for spec in BUDGETS},
        "packed": packed(),
        "refusals": refusals(whole, split, folder),
    }


def files(whole, split, folder, group):
    tokens, found = text(51), {}
    for name, reduction in FILES.items():
        _, H = whole(tokens, whole.initial_state(2, reduction))
        logits, G = split(tokens, split.initial_state(2, reduction), last_only=True)
        G.save(folder / name, logits=logits, metadata={"text": "a"})
        loaded = msrnn.load_state(folder / name)
        expected, _ = whole.step(tokens[:, 0], H)
        gaps = [largest_gap(whole.step(tokens[:, 0], loaded)[0], expected)]
        part, again = msrnn.load_state(folder / name, group=group, logits=True)
        gaps += [largest_gap(split.step(tokens[:, 0], part)[0], expected), largest_gap(again, logits)]
        gaps.append(largest_gap(split.step(tokens[:, 0], msrnn.distribute(H))[0], expected))
        H.save(folder / f"{name} whole", logits=expected)
        sizes = [(folder / f"{name}{of}").stat().st_size for of in ("", " whole")]
        found[f"file {name}"] = max(gaps), has_rows_of(part, loaded), abs(sizes[0] - sizes[1])
    split.save(folder / "model")
    saved = msrnn.load(folder / "model")
    parameters = all(x.equal(saved.state_dict()[name]) for name, x in whole.state_dict().items())
    slices = msrnn.load(folder / "model", group=group)
    same = all(x.equal(slices.state_dict()[name]) for name, x in split.state_dict().items())
    found["model"] = parameters, same, slices.fingerprint() == whole.fingerprint() == saved.fingerprint()
    return found


def decoding(whole, split, rank):
    tokens, start = text(51, length=9), {"max_new_tokens": 12}
    found, states = {}, []
    for cell in (whole, split):
        plain = msrnn.generate(cell, tokens, cell.initial_state(2, "tova:6"), **start)
        looked = msrnn.lookahead(cell, tokens, cell.initial_state(2, "tova:6"), **start)
        jacobi = msrnn.jacobi(cell, tokens, cell.initial_state(2, "random:6"), **start)
        random = msrnn.generate(cell, tokens, cell.initial_state(2, "random:6"), **start)
        logits, prefilled = msrnn.prefill(cell, tokens, "h2o-layer:6")
        chosen = logits.argmax(-1), msrnn.prefill(cell, tokens, LayerMaximum(6))[1]
        _, trace = cell.scan(tokens, cell.initial_state(2, "tova:6"), weights=True)
        int8 = cell(tokens, cell.initial_state(2, "tova:6", dtype="int8"))[0]
        states.append((plain, looked, jacobi, random, logits, prefilled, chosen[1], trace, int8))
    one, two = states
    found["decoding"] = [
        x.tokens.equal(y.tokens) and has_rows_of(y.state, x.state) for x, y in zip(one[:4], two[:4], strict=True)
    ]
    found["decoding"] += [two[0].tokens.equal(two[1].tokens), two[2].tokens.equal(two[3].tokens)]
    found["prefill"] = largest_gap(one[4], two[4]), has_rows_of(two[5], one[5]), has_rows_of(two[6], one[6])
    heads = split.rank_part.heads
    same_left = all(G.left.equal(heads.own(H.left, 1)) for G, H in zip(two[7], one[7], strict=True))
    found["scan"] = same_left, has_rows_of(two[7].at(7), one[7].at(7)), largest_gap(two[7][1].scores, one[7][1].scores)
    found["int8"] = largest_gap(one[8], two[8])
    generator = torch.Generator().manual_seed(rank)  # another one on each rank
    sampled = msrnn.generate(split, tokens, max_new_tokens=12, do_sample=True, generator=generator).tokens
    auto = msrnn.lookahead(split, tokens, max_new_tokens=12, do_sample=True, generator=generator).tokens
    found["sampled"] = sampled.tolist(), auto.tolist()
    return found


def uneven_heads(whole, split, spec):
    """Decode, prefill and trace with both cells; return the largest difference of logits, and whether each result is equal."""
    tokens, n = text(51, length=40), torch.tensor([37, 4])
    one, two = (msrnn.prefill(cell, tokens, spec) for cell in (whole, split))
    plain = msrnn.generate(whole, tokens, whole.initial_state(2, spec), max_new_tokens=12)
    looked = msrnn.lookahead(split, tokens, split.initial_state(2, spec), max_new_tokens=12)
    traces = [cell.scan(tokens, cell.initial_state(2, spec))[1] for cell in (whole, split)]
    same = looked.tokens.equal(plain.tokens), has_rows_of(looked.state, plain.state), has_rows_of(two[1], one[1])
    return largest_gap(one[0], two[0]), *same, has_rows_of(traces[1].at(n), traces[0].at(n))


def gradients(name):
    family, fields = name.partition(" ")[0].rstrip(","), {"n_kv_heads": 1} if "shared" in name else {}
    sizes = {"n_layers": 2, "layer_windows": (), "layer_ropes": (), "vocab_size": 51}
    whole = tiny_family(family, frozen=False, **sizes, **fields)
    split, tokens = msrnn.distribute(whole), text(51, length=12)
    for cell in (whole, split):
        loss_of(cell, tokens, TRAINED[name]).backward()
    gap = 0.0
    for parameter, x in split.named_parameters():
        expected = dict(whole.named_parameters())[parameter].grad
        place = split.rank_part.placement(parameter, x)
        expected = expected if place is None else place.take(expected, split.rank_part.ranks.rank)
        gap = max(gap, float((x.grad - expected).abs().max()))
    found = clip_split_gradients_(split.rank_part, split.named_parameters(), 0.1)
    expected = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.1)
    clipped = abs(float(split.norm.weight.grad.norm() - whole.norm.weight.grad.norm()))
    return gap, abs(float(found - expected)), clipped


def loss_of(cell, tokens, reduction):
    """Return the loss of many tokens and of a step after them, with the graph through the state."""
    logits, state = cell(tokens[:, :-2], cell.initial_state(2, reduction))
    last, _ = cell.step(tokens[:, -2], state)
    logits = torch.cat((logits, last[:, None]), dim=1)
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def sent_bytes(split, spec):
    tokens = text(51, BATCH)
    _, state = split(tokens, split.initial_state(BATCH, spec))
    TRAFFIC.reset()
    split.step_(tokens[:, 0], state)
    return dict(TRAFFIC.payload), dict(TRAFFIC.messages)


def packed():
    whole = tiny_family(
        "llama", width=64, head_dim=16, n_kv_heads=4, ffn_width=128, n_layers=2, vocab_size=51, dtype=torch.float32
    )
    tensors, found = {name: LazyTensor.of(x) for name, x in whole.state_dict().items()}, {}
    for weights in ("int4", "int8"):
        chosen = pack_tensors(whole.config, tensors, weights)
        one = build_frozen(whole.config, chosen, dtype=torch.float32)
        two = msrnn.distribute(one)
        expected, _ = one(text(51), one.initial_state(2, "tova:6"))
        gap = largest_gap(two(text(51), two.initial_state(2, "tova:6"))[0], expected)
        found[weights] = gap, two.fingerprint() == one.fingerprint(), type(two.layers[0].o).__name__
    small = tiny_family("llama", width=64, head_dim=8, ffn_width=128, n_layers=1, dtype=torch.float32)
    tensors = {name: LazyTensor.of(x) for name, x in small.state_dict().items()}
    small = build_frozen(small.config, pack_tensors(small.config, tensors, "int4"), dtype=torch.float32)
    return {**found, "refusal": refusal(lambda: msrnn.distribute(small))}


def refusals(whole, split, folder):
    tokens = text(51)
    whole_state, split_state = whole.initial_state(2, "tova:6"), split.initial_state(2, "tova:6")
    calls = {
        "whole state": lambda: split.step(tokens[:, 0], whole_state),
        "part of a state": lambda: whole.step(tokens[:, 0], split_state),
        "split twice": lambda: msrnn.distribute(split),
        "state split twice": lambda: msrnn.distribute(split_state),
        "another model on rank 1": lambda: msrnn.distribute(tiny_family("llama", seed=split.rank_part.ranks.rank)),
        "save": lambda: split_state.save(folder / "nothing" / "state"),
        "save on a rank": lambda: split_state.save(folder / "x", metadata={"a": 1} if split.rank_part.ranks.rank else {}),
        "pickle": lambda: copy.copy(split.rank_part.ranks),
        "group": lambda: msrnn.load(folder / "model", group="world"),
    }
    found = {name: refusal(call) for name, call in calls.items()}
    copied = copy.deepcopy(split)
    found["copy"] = largest_gap(copied(tokens)[0], split(tokens)[0])
    found["files"] = sorted(path.name for path in folder.iterdir() if path.name in ("x", "nothing"))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(2, run_cases, tmp_path_factory.mktemp("ranks"))


def test_a_saved_state_is_that_of_all_heads_and_each_rank_reads_its_own(found):
    for of_rank in found:
        for name in FILES:
            gap, same_rows, more_bytes = of_rank[f"file {name}"]
            assert more_bytes < 100, "names and metadata"
            assert gap < 1e-9
            assert same_rows


def test_a_saved_model_is_whole(found):
    assert all(of_rank["model"] == (True, True, True) for of_rank in found)


def test_decoding_equals_that_of_one_process(found):
    for of_rank in found:
        assert of_rank["decoding"] == [True] * 6
        gap, *same_rows = of_rank["prefill"]
        assert gap < 1e-9
        assert same_rows == [True, True]
        *same, gap = of_rank["scan"]
        assert same == [True, True]
        assert gap < 1e-9
        assert of_rank["int8"] < 1e-9


@pytest.mark.parametrize("spec", BUDGETS)
def test_uneven_heads_are_those_of_one_process(found, spec):
    for of_rank in found:
        gap, *same = of_rank[spec]
        assert gap < 1e-9
        assert same == [True] * 4


def test_ranks_sample_the_same_tokens(found):
    assert found[0]["sampled"] == found[1]["sampled"]


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_equal_those_of_one_process(found, name):
    for of_rank in found:
        assert max(of_rank[f"gradients of {name}"]) < 1e-9


@pytest.mark.parametrize("spec", SENT)
def test_bytes_of_a_step(found, spec):
    E, V, L, numbers = 24, 51, 2, 8 * BATCH
    payload = {"embedding": E * numbers, "attention output": L * E * numbers, "MLP output": L * E * numbers}
    payload["logits"] = -(-V // 2) * numbers
    if SENT[spec]:
        payload["scores"] = L * (SIZE + 1) * numbers
    for of_rank in found:
        sent, messages = of_rank[f"bytes of {spec}"]
        assert sent == payload
        # the scores of all layers are in one message
        assert messages == {name: L if "output" in name else 1 for name in payload}


def test_packed_matrices_are_split_at_their_groups(found):
    for of_rank in found:
        for weights in ("int4", "int8"):
            gap, same_fingerprint, kind = of_rank["packed"][weights]
            assert gap < 1e-4
            assert same_fingerprint
            assert kind == {"int4": "Int4Linear", "int8": "Int8Linear"}[weights]
        assert "slices of 16, 16 rows; expected multiples of 32, its groups" in of_rank["packed"]["refusal"]


def test_mixing_whole_and_split_is_refused(found):
    expected = {
        "whole state": "state holds all heads; this cell has key/value head",
        "part of a state": "this cell has all heads; expected a state of this cell",
        "split twice": "the cell is split already",
        "state split twice": "already; expected a whole state",
        "another model on rank 1": "rank 1 has another model than rank 0",
        "save": "expected a file in an existing folder",
        "save on a rank": "metadata 'a' are 1",
        "pickle": "cannot be pickled",
        "group": "group is 'world'; expected a process group",
    }
    for of_rank in found:
        for name, message in expected.items():
            assert message in of_rank["refusals"][name]
        assert of_rank["refusals"]["copy"] == 0
        assert of_rank["refusals"]["files"] == []

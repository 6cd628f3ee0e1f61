"""Arguments of any kind, everywhere a user can put one: what is senseless is refused in a sentence, the rest is right."""

import io
import json
import math
import os
from dataclasses import fields
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import CONFIG, assert_same, random_tokens, tiny_cell

import converters
import converters.__main__
import msrnn
import msrnn.cli.main
from msrnn import H2O, TOVA, Full, Sinks, Window, parse_reduction
from msrnn.models import Config
from msrnn.models.registry import config_from_dict

CELL = tiny_cell()
V = CELL.config.vocab_size
some = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

HUGE = st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), -(10**400)])
NUMBERS = st.one_of(st.integers(-3, 6), HUGE, st.floats(), st.sampled_from([0.5, 1e-300, 1e300]))
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.bfloat16, torch.complex64]),
    st.one_of(st.integers(-2, 60), st.sampled_from([2**62, -(2**63)])),
)
PLAIN = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.binary(max_size=4), st.sampled_from(["cpu", "meta"])
)
ANYTHING = st.one_of(
    PLAIN,
    TENSORS,
    st.lists(PLAIN, max_size=3),
    st.lists(PLAIN, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), PLAIN, max_size=2),
    st.sampled_from([int, object(), slice(None), range(2), torch.float32, torch.int8, torch.Generator, {1, 2}, len, b"", ...]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def allowed(call):
    """What ``call`` gives, or None where it is refused; any other exception goes through and fails the test."""
    try:
        return call()
    except msrnn.Error as refused:
        sentence = str(refused)
        assert sentence.strip()
        assert sentence.isprintable()
        assert len(sentence) <= 1000
        return None


def goes_on(state, cell=CELL):
    """A state that was let in takes steps, in both ways."""
    B = len(state.clock)
    if allowed(lambda: cell.step(torch.zeros(B, dtype=torch.int64), state)) is not None:
        cell(torch.zeros(B, 3, dtype=torch.int64), state)


# Operators and their text forms.

WORDS = st.sampled_from(["full", "window", "sinks", "h2o", "h2o-layer", "tova", "tova-head", "TOVA ", "", "top"])
COUNTS = st.one_of(st.integers(-1, 9).map(str), st.sampled_from(["", "9" * 18, "9" * 19, "٣", "1e3", " 4", "0x4", "4.0", "+4"]))
FORMS = st.one_of(st.text(max_size=12), st.builds(lambda w, n: ":".join([w, *n]), WORDS, st.lists(COUNTS, max_size=3)))


@some
@given(FORMS)
def test_any_text_is_an_operator_that_says_itself_or_is_refused(text):
    operator = allowed(lambda: parse_reduction(text))
    if operator is not None:
        assert parse_reduction(str(operator)) == operator
        goes_on(CELL.initial_state(1, text))


@some
@given(
    st.sampled_from([Full, Window, Sinks, H2O, TOVA]), st.lists(st.one_of(ANYTHING, st.integers(0, 5)), min_size=1, max_size=3)
)
def test_any_settings_make_an_operator_that_works_or_are_refused(kind, values):
    operator = allowed(lambda: kind(*values[: len(fields(kind))]))
    if operator is not None:
        assert hash(operator) == hash(operator)
        state = allowed(lambda: CELL.initial_state(1, operator))
        if state is not None:
            goes_on(state)


@some
@given(
    st.one_of(ANYTHING, st.just(1)),
    st.one_of(ANYTHING, st.lists(FORMS, min_size=2, max_size=2), st.just("tova:2")),
    st.one_of(st.none(), ANYTHING),
    st.one_of(st.none(), ANYTHING),
)
def test_any_initial_state(batch_size, reduction, dtype, device):
    state = allowed(lambda: CELL.initial_state(batch_size, reduction, dtype=dtype, device=device))
    if state is not None:
        assert len(state.clock) == batch_size
        if state.clock.device.type == "cpu" and batch_size < 100:
            goes_on(state)


# Token ids.


def is_text(x, axes):
    """The rule, once more: int64, so many axes, at least one sequence, ids of the vocabulary."""
    return (
        isinstance(x, torch.Tensor)
        and x.dtype == torch.int64
        and x.ndim == axes
        and x.shape[0] > 0
        and bool(((x >= 0) & (x < V)).all())
    )


IDS = st.one_of(
    ANYTHING,
    st.lists(st.integers(-1, V), min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=2), min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2), min_size=1, max_size=3).map(torch.tensor),
)


@some
@given(IDS, st.sampled_from(["full", "tova:2"]))
def test_any_token_ids(ids, reduction):
    B = len(ids) if isinstance(ids, torch.Tensor) and ids.ndim and len(ids) else 1
    state = CELL.initial_state(B, reduction)
    for step in (CELL.step, CELL.step_):
        stepped = allowed(lambda step=step: step(ids, state.clone()))
        assert (stepped is not None) == is_text(ids, 1)
    read = allowed(lambda: CELL(ids, state))
    assert (read is not None) == is_text(ids, 2)
    for decode in (msrnn.generate, lambda *a, **k: [*msrnn.stream(*a, **k)]):
        new = allowed(lambda decode=decode: decode(CELL, ids, state, max_new_tokens=1))
        assert (new is not None) == (is_text(ids, 2) and ids.shape[1] > 0)
    assert state.clock.tolist() == [0] * B
    if read is not None:
        for t, token in enumerate(ids.T):
            logits, state = CELL.step(token, state)
            torch.testing.assert_close(read[0][:, t], logits, rtol=0, atol=1e-9)


LENGTHS = st.one_of(ANYTHING, st.lists(st.integers(-1, 5), min_size=2, max_size=2).map(torch.tensor))


@some
@given(LENGTHS, st.one_of(ANYTHING, st.lists(st.booleans(), min_size=2, max_size=2).map(torch.tensor)))
def test_any_lengths_and_any_active(lengths, active):
    text = random_tokens(1, 2, 4)
    read = allowed(lambda: CELL(text, lengths=lengths))
    fine = isinstance(lengths, torch.Tensor) and lengths.dtype == torch.int64 and lengths.shape == (2,)
    assert (read is not None) == (lengths is None or (fine and bool(((lengths >= 0) & (lengths <= 4)).all())))
    if fine and read is not None:
        assert read[1].clock.tolist() == lengths.tolist()
    allowed(lambda: msrnn.generate(CELL, text, lengths=lengths, max_new_tokens=1))
    stepped = allowed(lambda: CELL.step(text[:, 0], active=active))
    fine = isinstance(active, torch.Tensor) and active.dtype == torch.bool and active.shape == (2,)
    assert (stepped is not None) == (active is None or fine)


@some
@given(
    st.one_of(ANYTHING, st.lists(st.integers(-3, 3), max_size=3), st.lists(st.integers(-3, 3), max_size=3).map(torch.tensor))
)
def test_any_selection(rows):
    _, state = CELL(random_tokens(1, 2, 3))
    picked = allowed(lambda: state.select(rows))
    if picked is not None:
        index = list(range(2))[rows] if isinstance(rows, slice) else [int(i) for i in rows]
        assert all(-2 <= i < 2 for i in index)
        assert torch.equal(picked[0].keys, state[0].keys[index])


@some
@given(ANYTHING)
def test_any_place_for_a_state(where):
    allowed(lambda: CELL.initial_state(1).to(where))
    assert allowed(lambda: CELL.step(torch.tensor([1]), where)) is None or where is None
    assert allowed(lambda: CELL(torch.tensor([[1]]), where)) is None or where is None


# Decoding.

SETTINGS = st.fixed_dictionaries(
    {"max_new_tokens": st.one_of(st.integers(0, 3), ANYTHING.filter(lambda x: not isinstance(x, int) or x < 4))},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.one_of(ANYTHING, st.floats(0, 2)),
        "top_k": st.one_of(ANYTHING, st.integers(0, 60)),
        "top_p": st.one_of(ANYTHING, st.floats(0, 1)),
        "eos_token_id": st.one_of(ANYTHING, st.integers(0, V), st.lists(st.integers(0, V), max_size=2)),
        "generator": st.one_of(ANYTHING, st.builds(torch.Generator)),
    },
)


@some
@given(SETTINGS)
def test_any_settings_of_decoding(chosen):
    text = random_tokens(2, 2, 3)
    done = allowed(lambda: msrnn.generate(CELL, text, **chosen))
    streamed = allowed(lambda: [*msrnn.stream(CELL, text, **chosen)])
    assert (done is None) == (streamed is None)
    if done is not None:
        new, state = done
        assert new.shape[0] == 2
        assert new.shape[1] <= chosen["max_new_tokens"]
        assert bool(((new >= 0) & (new < V)).all())
        assert int(state.clock.max()) == 3 + new.shape[1]


# Configs and saved states, field by field.


@some
@given(
    st.sampled_from([f.name for f in fields(Config)] + ["rope.theta", "rope.factor", "rope.original_length", "rope.rope_type"]),
    JSON,
)
def test_any_fact_of_a_config(name, value):
    facts = CELL.config.to_dict()
    if name.startswith("rope."):
        facts["rope"] = {"rope_type": "dynamic", "theta": 100.0, "factor": 2.0, "original_length": 8, name[5:]: value}
    else:
        facts[name] = value
    config = allowed(lambda: config_from_dict(facts))
    if config is not None:
        again = config_from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert all(math.isfinite(x) for x in (*vars(config).values(), *vars(config.rope).values()) if isinstance(x, float))
        if all(
            getattr(config, key) == value for key, value in CONFIG.items() if key not in ("rope", "norm_eps", "context_length")
        ):
            goes_on(
                tiny_cell(norm_eps=config.norm_eps, rope=config.rope).initial_state(1),
                tiny_cell(norm_eps=config.norm_eps, rope=config.rope),
            )


_, STATE = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))


def reloaded(path, change):
    """A saved state whose tensors and texts have been changed, if it is let in; then it can go on and be looked at."""
    STATE.save(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    change(tensors, about)
    save_file(tensors, path, about)
    state = allowed(lambda: msrnn.load_state(path))
    if state is not None:
        goes_on(state)
        assert str(state)
    return state


@some
@given(st.data())
def test_any_tensor_of_a_saved_state(tmp_path_factory, data):
    def change(tensors, about):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kinds.append(tensors[name])
        values = (
            [-1, 0, 3, 8, 2**62, 2**63 - 1, -(2**63)] if name.endswith(("clock", "positions")) else [math.nan, math.inf, -1, 0]
        )
        full = st.sampled_from(values).map(lambda x: torch.full_like(kinds[0], x))
        tensors[name] = data.draw(st.one_of(TENSORS.filter(lambda x: not x.is_complex()), full))
        kinds.append(tensors[name])

    kinds = []
    if reloaded(tmp_path_factory.getbasetemp() / "state", change) is not None:
        old, new = kinds
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@some
@given(st.sampled_from(["operators", "cell", "format", "version"]), st.data())
def test_any_text_of_a_saved_state(tmp_path_factory, name, data):
    def change(tensors, about):
        said = json.loads(about[name]) if name in ("operators", "cell") else about[name]
        if name == "operators":
            said[0][data.draw(st.sampled_from(["operator", "size", "recent", "per_head", "colour"]))] = data.draw(JSON)
        elif name == "cell":
            said[data.draw(st.sampled_from(["signature", "dtype", "values", "colour"]))] = data.draw(JSON)
        text = st.text(alphabet=st.characters(codec="utf-8"), max_size=5)
        about[name] = data.draw(st.one_of(st.just(json.dumps(said)), text))

    state = reloaded(tmp_path_factory.getbasetemp() / "state", change)
    if state is not None and name != "operators":
        assert_same(state, STATE)


# The command lines.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a tokenizer."""
    import fuzzing.checkpoints

    folder = tmp_path_factory.mktemp("model") / "tiny"
    fuzzing.checkpoints.FORMATS["own"].write(folder, "llama")
    return str(folder)


VALUES = {
    "--revision": ["main", ""],
    "--dtype": ["float16", "float32", "int8"],
    "--device": ["cpu", "cpu:1", "cuda", "meta", ""],
    "--prompt": ["", "a b", "\udcff", "a\0b", "é\n"],
    "--prompt-file": ["nothing", ".", "", "x" * 5000, "a\0b", "/dev/null"],
    "--reduction": ["full", "window:0", "tova:0", "h2o:2:1", "tova:999999999999999999", "x", "%s"],
    "--max-new-tokens": ["1", "2", "0", "-1", "1e3", "9" * 30],
    "--max-tokens": ["1", "0"],
    "--sample": [],
    "--ignore-eos": [],
    "--stdin": [],
    "--temperature": ["0.5", "nan", "-1", "1e400", "x", "1e-300"],
    "--top-k": ["1", "0", "-1", "99"],
    "--top-p": ["0.5", "0", "1", "nan"],
    "--seed": ["0", "1", "9" * 18, "9" * 19],
    "--layer": ["0", "-1", "7"],
    "--picture": ["x.png", "x.xyz", "", ".", "/nowhere/x.png", "x" * 300 + ".png"],
    "--out": ["x.svg", "", "..", "/nowhere/x.png", "a\0.png"],
    "--system": ["", "a", "\udcff", "a\0b"],
    "--text": ["nothing", ".", "", "a\0b", "/dev/null"],
    "--tokens": ["1", "0", "30", "x"],
    "--interval": ["1", "0", "7", "9" * 30],
    "--to": ["hf", "msrnn", "gguf"],
    "--help": [],
}
COMMON = ["--revision", "--dtype", "--device", "--help"]
TAKES = {  # what each command line has to have, and may have
    "generate": ([], [*COMMON, "--reduction", "--max-new-tokens", "--sample", "--temperature", "--top-k", "--top-p", "--seed"]),
    "compare": (["--reduction", "tova:3"], [*COMMON, "--reduction", "--max-new-tokens", "--picture"]),
    "retention": (["--reduction", "full", "--out", "x.png"], [*COMMON, "--reduction", "--max-tokens", "--layer", "--out"]),
    "chat": ([], [*COMMON, "--reduction", "--system", "--max-new-tokens", "--sample", "--temperature", "--top-k", "--seed"]),
    "soak": (
        ["--tokens", "20", "--reduction", "tova:3", "--interval", "10", "--out", "run"],
        [*COMMON, "--reduction", "--tokens", "--text", "--seed", "--interval", "--out"],
    ),
    "info": ([], ["--revision"]),
    "convert": ([], ["--to", "--dtype", "--revision", "--help"]),
}
TARGETS = ["new", "new", "MODEL", "", ".", "/nowhere/x", "x" * 300, "a\0b", "\udcff"]
WORD = st.one_of(
    st.text(max_size=5), st.sampled_from(["MODEL", "a/b", "..", "", "/nowhere", "x" * 5000, "a\0b", "\udcff", "--", "-1", "@x"])
)


@st.composite
def lines(draw):
    """A command and its line: mostly well made, with values of all kinds and now and then a stray word."""

    def option(name):
        return [name, draw(st.sampled_from(VALUES[name]))] if VALUES[name] else [name]

    command = draw(st.sampled_from(sorted(TAKES)))
    must, may = TAKES[command]
    model = draw(st.one_of(st.just("MODEL"), st.just("MODEL"), WORD))
    words = [model, draw(st.sampled_from(TARGETS))] if command == "convert" else [command, model, *must]
    if command in ("generate", "compare", "retention"):
        words += draw(
            st.one_of(st.just(["--prompt", "the"]), st.sampled_from(["--prompt", "--prompt-file", "--stdin"]).map(option))
        )
    words += [word for name in draw(st.lists(st.sampled_from(may), max_size=3)) for word in option(name)]
    return command, [*words, *draw(st.one_of(st.just([]), st.just([]), st.just([]), st.lists(WORD, max_size=2)))]


@some
@given(line=lines())
def test_any_command_line(model, line, tmp_path_factory, capfd, monkeypatch):
    command, words = line
    folder, before = tmp_path_factory.mktemp("here"), {path: path.read_bytes() for path in Path(model).iterdir()}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.stdin", io.StringIO("the"))
    main = converters.__main__.main if command == "convert" else msrnn.cli.main.main
    capfd.readouterr()
    try:
        code = main([model if word == "MODEL" else word for word in words])
    except SystemExit as left:  # argparse's way out
        code = left.code
    err = capfd.readouterr().err
    event(f"{command} {code}")
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    if code:
        assert "error: " in err or err.startswith("msrnn: ")
        assert len(err.splitlines()) == 1 or code == 2
        assert not [name for name in os.listdir(folder) if "partial" in name]
    assert before == {path: path.read_bytes() for path in before}

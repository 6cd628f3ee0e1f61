"""``msrnn bench`` on tiny cells: its rows, its arithmetic on given numbers, and what happens where something is missing.
No times are asserted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from support.tiny_models import FACTS, tiny_cell

import converters
import msrnn
from msrnn.bench import eviction_passes, memory, step, timing, unroll, worker
from msrnn.bench.baselines import kvpress
from msrnn.bench.curve import curve
from msrnn.bench.memory import _resident, now, reset_peak
from msrnn.bench.report import markdown
from msrnn.bench.result import Row, Unmeasured, paired
from msrnn.bench.sections import SECTIONS, measure
from msrnn.bench.settings import BLOCK, Bench, block_of
from msrnn.cli.main import main

TOKENS, SIZE = 32, 8
LAYERS, HEADS, DIM = FACTS["n_layers"], FACTS["n_kv_heads"], FACTS["head_dim"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The same tiny model as the library's own folder and as Hugging Face's."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_cell(dtype=torch.float32, tied=True).save(folder / "own")
    converters.convert(folder / "own", folder / "hf", to="hf")
    return folder


@pytest.fixture
def bench(folders):
    return Bench(
        load=partial(converters.load, str(folders / "own")),
        export=lambda: folders / "hf",
        tokenizer=lambda: None,
        ids=torch.randint(50, (16 * TOKENS,), generator=torch.Generator().manual_seed(0)),
        device=torch.device("cpu"),
        tokens=TOKENS,
        size=SIZE,
        rounds=2,
    )


def given(monkeypatch, **times):
    """The ways are not run: these are their seconds, in order of the ways."""
    monkeypatch.setattr(Bench, "time", lambda self, ways, rounds, **_: dict(zip(ways, times.values(), strict=True)))


# Arithmetic.


def test_a_row_is_of_medians_and_of_ratios_round_by_round():
    row = paired("work", "s", [2.0, 9.0, 4.0], "other", [1.0, 3.0, 8.0], "≤ 1.25")
    assert (row.ours, row.theirs, row.ratio, row.low, row.high) == (4.0, 3.0, 2.0, 0.5, 3.0)
    assert paired("work", "s", [2.0, 9.0, 4.0]).ratio is None
    with pytest.raises(ValueError, match="longer"):
        paired("work", "s", [1.0], "other", [1.0, 2.0])


@pytest.mark.parametrize(
    ("ratio", "bound", "reached"),
    [
        (1.25, "≤ 1.25", True),
        (1.26, "≤ 1.25", False),
        (1.0, "< 1", False),
        (0.99, "< 1", True),
        (0.45, "≥ 0.45 (aim 0.5)", True),
        (0.44, "≥ 0.45 (aim 0.5)", False),
        (None, "≤ 1", None),
        (0.5, "", None),
    ],
)
def test_a_bound_is_reached_or_not(ratio, bound, reached):
    assert Row("work", ratio=ratio, bound=bound).reached is reached


def test_ways_are_timed_in_turn_and_back(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def way(name, takes):
        called.append(name)
        clock[0] += takes * len(called)

    ways = {name: partial(way, name, takes) for name, takes in {"a": 1.0, "b": 10.0}.items()}
    spent = timing.seconds(ways, 3, torch.device("cpu"), lambda: None)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert spent == {"a": [1.0, 4.0, 5.0], "b": [20.0, 30.0, 60.0]}


def test_a_warm_up_is_not_counted(bench):
    called = []
    spent = bench.time({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert [len(times) for times in spent.values()] == [2, 2]
    assert sorted(called) == ["a"] * 3 + ["b"] * 3


def test_a_block_goes_through_the_text_again_and_again():
    read = []
    some = block_of(lambda token: read.append(token.tolist()), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    some()
    some()
    assert read == ([[1, 4], [2, 5], [3, 6]] * BLOCK)[: 2 * BLOCK]


def test_times_of_a_block_become_milliseconds_a_step(monkeypatch, bench):
    given(monkeypatch, ours=[BLOCK * 0.5], theirs=[BLOCK * 0.25])
    row = next(iter(step.few(bench)))
    assert (row.ours, row.theirs, row.ratio) == (500.0, 250.0, 2.0)


def test_the_share_of_the_bandwidth(monkeypatch, bench):
    memory = sum(x.numel() for x in bench.cell().parameters()) * 4
    assert step.bytes_read(bench.cell()) == memory  # tied: the embedding is the head, which is read
    given(monkeypatch, step=[0.1, 0.2], sum=[0.3, 0.3])
    (row,) = step.bandwidth(bench)
    pace, most = BLOCK * memory / 1e9, BLOCK * step.LARGE / 0.3 / 1e9
    assert row.ours == pytest.approx((pace / 0.1 + pace / 0.2) / 2)
    assert row.theirs == pytest.approx(most)
    assert row.ratio == pytest.approx(row.ours / most)


def test_an_embedding_of_its_own_is_not_read():
    cell = tiny_cell(dtype=torch.bfloat16, tied=False)
    rest = sum(x.numel() for name, x in cell.named_parameters() if not name.startswith("embed"))
    assert step.bytes_read(cell) == 2 * rest


def test_ragged_texts_are_as_many_tokens_as_equal_ones(monkeypatch, bench):
    read, bench.tokens = {}, 33  # which do not divide well
    monkeypatch.setattr(unroll, "_read", lambda cell, ids, form, lengths: read.update({ids.shape: lengths}))
    (row,) = unroll.ragged(bench)
    (equal, ragged) = read.values()
    assert len(set(equal.tolist())) == 1
    assert equal.sum() == ragged.sum()
    assert (ragged.min(), ragged.max()) == (4, 32)
    assert row.unit == "tokens/s"
    given(monkeypatch, equal=[1.0], ragged=[2.0])
    (row,) = unroll.ragged(bench)
    assert (row.ours, row.theirs, row.ratio) == (equal.sum() / 2, equal.sum(), 0.5)


def test_guesses_are_counted_block_by_block(bench):
    before, cell = msrnn.recurrence.unroll.decide, bench.cell()
    with eviction_passes.counted() as counts:
        cell(bench.text(150), cell.initial_state(1, "tova:8"))
    assert len(counts) == LAYERS * 3  # 150 tokens in blocks of 64, in each layer
    assert min(counts) >= 1
    assert max(counts) <= 64
    with eviction_passes.counted() as counts:
        cell(bench.text(5), cell.initial_state(1, "tova:8"))
    assert counts == []  # nobody left
    assert msrnn.recurrence.unroll.decide is before


# Sections.

ROWS = {
    "fold": ["read 32 tokens, tova:8", "… h2o:8", "… window:8", "… sinks:8:4", "… full"],
    "long": ["read 128 tokens, tova:8"],
    "half": ["read 32 tokens, tova:8, bfloat16"],
    "ragged": ["read 8 texts of 4 … 32 tokens, tova:8"],
    "guesses": ["guesses a block, 32 tokens, tova:8", "… h2o:8"],
    "step": ["step_, tova:8, float32", "… bfloat16"],
    "bandwidth": ["parameters read in a step_, tova:8, float32"],
    "pure": ["step, tova:8, position 9", "step, full, position 62"],
    "few": ["fold of 16 tokens on tova:8"],
    "batch": ["step_ at batch 16, tova:8"],
    "peak": [f"peak over the parameters, read 512 tokens, tova:8{more}" for more in ("", ", freed memory given back")],
    "far": ["step_, tova:8, position 312", "resident memory, tova:8, position 312"],
    "held": ["H after 32 tokens, tova:8", "… h2o:8", "… window:8"],
}
BOUNDLESS = {"guesses", "held"}


@pytest.mark.parametrize("name", ROWS)
def test_a_section_has_its_rows(name, bench):
    rows = list(measure(bench, name))
    for row, work in zip(rows, ROWS[name], strict=True):
        assert row.work.endswith(work.removeprefix("… ")), row
        assert row.ours > 0
        assert row.note == ""
        assert (row.reached is None) == (name in BOUNDLESS)


def test_every_section_is_tested():
    assert SECTIONS.keys() - ROWS.keys() == {"kvpress"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_has_the_same_weights(dtype, bench):
    peer, cell, ids = bench.peer(dtype), bench.cell(dtype), bench.text(20)
    assert {p.dtype for p in (*peer.model.parameters(), *cell.parameters())} == {dtype}
    off = (peer.model(ids).logits - cell(ids)[0]).abs().mean() / cell(ids)[0].abs().mean()
    assert off < (1e-5 if dtype == torch.float32 else 0.05)
    cache = peer.read(ids)
    peer.step(ids[:, 0], cache)
    assert cache.get_seq_length() == 20


def test_bytes_of_a_state(bench):
    rows = {row.work: row for row in measure(bench, "held")}
    a_row = LAYERS * HEADS * (2 * DIM * 4 + 8)
    assert rows["H after 32 tokens, window:8"].theirs == pytest.approx((TOKENS * a_row + 8) / 1e6)
    assert rows["H after 32 tokens, tova:8"].ours == pytest.approx((SIZE * a_row + 8) / 1e6, rel=0.15)  # room for a row


def test_without_transformers_the_rows_say_so(monkeypatch, bench):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("fold", "long", "step", "few", "batch"):
        for row in measure(bench, name):
            assert row.ours > 0
            assert (row.ratio, row.reached) == (None, None)
            assert row.note == "transformers is not installed"
    assert {point.way for point in curve(bench)} == {"tova:8", "full"}


def test_a_text_that_is_too_short_says_so(bench):
    bench.ids = bench.ids[: TOKENS + 3]
    assert [row.note for row in measure(bench, "long")] == ["the text has 35 tokens; 128 are needed"]
    assert all(row.ratio for row in measure(bench, "few"))


def test_want_of_room_ends_a_section_only(monkeypatch, bench):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more")

    monkeypatch.setattr(Bench, "cell", full)
    assert [row.note for row in measure(bench, "held")] == ["RuntimeError: DefaultCPUAllocator: can't allocate memory"]


def test_positions_of_the_picture(bench):
    points = list(curve(bench))
    places = [TOKENS * 2**n // 8 for n in range(6)]
    for way in ("tova:8", "full", "transformers"):
        its = [point for point in points if point.way == way]
        assert [point.position for point in its] == places
        assert all(point.ms > 0 for point in its)
    memory = {(point.way, point.position): point.nbytes for point in points}
    assert len({memory["tova:8", place] for place in places if place > SIZE}) == 1
    assert [memory["transformers", place] for place in places] == [place * 2 * LAYERS * HEADS * DIM * 4 for place in places]
    assert [memory["full", place] for place in places] == [LAYERS * (place * HEADS * (2 * DIM * 4 + 8) + 8) for place in places]


# Other processes.


def peak_of(cell, ids, much, some):
    """``much`` was held before; at most ``some`` is held while it is measured."""
    torch.ones(much // 4).sum()
    before = reset_peak(ids.device)
    torch.ones(some // 4).sum()
    return now("VmHWM", ids.device) - before, torch.get_num_threads()


def deaf(*_):
    """Whether ctrl-C is kept from this process."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def told(*_):
    return os.environ.get("MSRNN_TOLD")


def grief(cell, ids, how):
    if how == "raise":
        raise OSError("no way")
    os._exit(7)


def test_a_peak_is_of_what_was_measured_alone(bench, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found, threads = worker.apart(bench, peak_of, bench.text(1), 300_000_000, 60_000_000)
    assert 0.9 < found / 60_000_000 < 1.1
    assert threads == 3


def test_the_other_process_is_told_more(bench, monkeypatch):
    monkeypatch.delenv("MSRNN_TOLD", raising=False)
    assert worker.apart(bench, told, bench.text(1), environment={"MSRNN_TOLD": "yes"}) == "yes"
    assert "MSRNN_TOLD" not in os.environ


def test_a_peak_is_measured_with_and_without_freed_memory(bench, monkeypatch):
    told = []
    monkeypatch.setattr(memory, "apart", lambda *_, environment: told.append(environment) or 1)
    list(memory.peak(bench))
    assert told == [{}, {}, memory.GIVEN_BACK, memory.GIVEN_BACK]


def test_ctrl_c_waits_until_the_other_process_has_started():
    """Another thread of ours may be the one that takes the signal; the main thread is who stops."""
    begun, done, reached = threading.Event(), threading.Event(), threading.Event()

    def press():
        begun.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        done.set()

    def start():
        with worker._deaf():
            begun.set()
            done.wait()
            reached.set()

    thread = threading.Thread(target=kvpress)
    thread.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert reached.is_set()


def test_ctrl_c_is_kept_from_the_other_process(bench):
    assert worker.apart(bench, deaf, bench.text(1))
    assert not deaf()


def test_states_near_and_far_have_read_as_much_as_said(bench, tmp_path):
    cell, paths = bench.cell(), [tmp_path / "near", tmp_path / "far"]
    assert all(x > 0 for x in _resident(cell, bench.text(50), "tova:8", 20, paths))
    for path, read in zip(paths, (20, 50), strict=True):
        state = msrnn.load_state(path)
        assert state.clock.tolist() == [read]
        assert state[0].keys.shape[2] == SIZE


@pytest.mark.parametrize(("how", "said"), [("raise", "OSError: no way"), ("exit", "ended with code 7")])
def test_grief_of_another_process_is_told(how, said, bench):
    with pytest.raises(Unmeasured, match=said):
        worker.apart(bench, grief, bench.text(1), how)


KVPRESS = """
from contextlib import contextmanager

class TOVAPress: pass

class DecodingPress:
    def __init__(self, press, compression_interval, target_size):
        assert isinstance(press, TOVAPress) and compression_interval == 1
        self.size = target_size

    @contextmanager
    def __call__(self, model):
        print("said by a library")
        def cut(model, args, kwargs, output):
            more = kwargs["past_key_values"].get_seq_length() - self.size
            if more and {cuts}:
                kwargs["past_key_values"].crop(-more)
        hook = model.register_forward_hook(cut, with_kwargs=True)
        yield
        hook.remove()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch, bench):
    """A package called kvpress, which cuts at each step if told so, found by this very Python."""
    for line in ("kvpress", "dead"):
        (tmp_path / line / f"{line}-0.0.dist-info").mkdir(parents=True)
        (tmp_path / line / f"{line}-0.0.dist-info" / "METADATA").write_text(f"Name: {line}\nVersion: 0.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "kvpress"))
    bench.kvpress = Path(sys.executable)
    return lambda cuts: (tmp_path / "kvpress" / "kvpress.py").write_text(KVPRESS.replace("{cuts}", cuts))


def test_kvpress_in_its_own_process(stand_in, bench):
    stand_in("True")
    (row,) = measure(bench, "kvpress")
    assert row.note == ""
    assert row.beside.startswith("kvpress 0.0, transformers 5.")
    assert row.ours > 0
    assert row.theirs > 0
    assert row.bound == "≤ 0.5"


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ("False", f"its cache holds {SIZE + BLOCK} rows; expected {SIZE}"),
        ("1 / 0", "it ended (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_kvpress_that_fails_is_told(cuts, said, stand_in, bench):
    stand_in(cuts)
    assert [row.note for row in measure(bench, "kvpress")] == [f"kvpress: {said}"]


def test_no_kvpress_is_told(bench):
    assert [row.note for row in measure(bench, "kvpress")] == ["no --kvpress-python was given"]


# The command.


def command(folders, *args):
    return ["bench", str(folders / "own"), "--tokens", str(TOKENS), "--size", str(SIZE), "--rounds", "1", *map(str, args)]


def test_the_command_tells_and_writes(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.append(n))
    threads = []
    json_file, picture = tmp_path / "b.json", tmp_path / "b.png"
    args = command(folders, "--only", "step,held", "--threads", 1, "--json", json_file, "--picture", picture)
    assert main(args) == 0
    out, err = capsys.readouterr()
    told = json.loads(json_file.read_text())
    assert threads == [1]
    assert told["complete"] is True
    assert "random ids" in out
    tables = {}
    for entry in told["rows"]:
        row = Row(**entry["row"])
        assert asdict(row) == entry["row"]
        assert entry["reached"] is row.reached
        assert row.work in err
        tables.setdefault(entry["table"], []).append(row)
    assert list(tables) == ["One token", "Memory"]
    assert out.strip() == markdown(told["about"], tables)
    assert {point["way"] for point in told["curve"]} == {"tova:8", "full", "transformers"}
    assert imread(picture).shape[0] > 200
    assert imread(picture)[..., :3].std() > 0.05


def test_a_table_is_markdown():
    rows = [paired("a, b", "ms", [1.5, 3.0, 0.5], "c", [1.0, 1000.0, 0.25], "≤ 2", "so"), Row("d", note="why")]
    assert markdown({"on": "a day"}, {"One token": rows}) == (
        "- on: a day\n\n**One token**\n\n"
        "|      | msrnn   | beside |         | ratio (low … high)  | bound | reached |\n"
        "|------|---------|--------|---------|---------------------|-------|---------|\n"
        "| a, b | 1.50 ms | c      | 1.00 ms | 1.500 (0.00 … 2.00) | ≤ 2   | yes; so |\n"
        "| d    |         |        |         |                     |       | why     |"
    )


def test_a_text_is_read(hf_folder, tmp_path, monkeypatch, capsys):
    read = []
    monkeypatch.setitem(SECTIONS, "held", SECTIONS["held"]._replace(rows=lambda bench: read.append(bench) or []))
    (tmp_path / "text.txt").write_text("The sea was calm that morning, and " * 3)
    common = ["bench", str(hf_folder), "--size", "4", "--tokens", "16", "--only", "held", "--text", str(tmp_path / "text.txt")]
    assert main(common) == 1
    assert "Sinks: sinks is 4" in capsys.readouterr().err
    common[3] = "5"
    assert main(common) == 0
    ids = converters.tokenizer(hf_folder).encode("The sea was calm that morning, and " * 3).ids
    assert read[0].ids.tolist() == ids
    assert read[0].export() == hf_folder  # as it is
    assert f"text.txt, {len(ids)} tokens" in capsys.readouterr().out


def test_a_converted_folder_goes_in_the_end(folders, monkeypatch):
    made = []
    monkeypatch.setitem(SECTIONS, "held", SECTIONS["held"]._replace(rows=lambda bench: made.extend([bench.export()] * 2) or []))
    assert main(command(folders, "--only", "held")) == 0
    assert made[0] is made[1]
    assert made[0] != folders / "own"
    assert not made[0].exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tokens", "8"], "--tokens is 8; expected at least 16"),
        (["--size", "32"], "expected at least 16, and more than --size, 32"),
        (["--size", "4"], "sinks is 4"),
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--device", "meta"], "meta"),
        (["--picture", "b.xyz"], "b.xyz"),
        (["--json", "no/such/b.json"], "cannot write no/such/b.json"),
        (["--json", "."], "cannot write ."),
        (["--kvpress-python", "/nowhere/python"], "expected a Python (No such file"),
        (["--kvpress-python", sys.executable], "not both installed there"),
    ],
)
def test_refusals_are_one_sentence_before_any_work(args, said, folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(converters, "load", lambda *_, **__: pytest.fail("work began"))
    assert main([*command(folders), *args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert said in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_no_such_section(folders, capsys):
    with pytest.raises(SystemExit):
        main(command(folders, "--only", "fold,speed"))
    assert "'speed' is not a section; expected some of fold, long" in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_measured(folders, tmp_path):
    """A real one, to all processes of the terminal, while another process measures."""
    args = [sys.executable, "-m", "msrnn", *command(folders, "--only", "held,peak", "--json", tmp_path / "b.json")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(args, **pipes, start_new_session=True, cwd=Path(__file__).parents[2]) as running:
        for _ in range(3):
            assert "H after 32 tokens" in running.stderr.readline()
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while not children.read_text().strip():
            assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip() == "stopped"
    assert "H after 32 tokens, window:8" in out
    assert "**Memory**" in out
    told = json.loads((tmp_path / "b.json").read_text())
    assert told["complete"] is False
    assert len(told["rows"]) == 3
    end = time.monotonic() + 10
    while _lives(running.pid):  # the last one ends by itself when it hears no more of us
        assert time.monotonic() < end
        time.sleep(0.1)


def _lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_versions_are_of_that_python(stand_in):
    assert kvpress.versions(Path(sys.executable)).startswith("0.0, transformers 5.")

"""A soak sees what goes wrong, and killed anywhere it ends as if it had not been."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from support.tiny_models import assert_same, tiny_cell, tiny_decoder, tokens

import msrnn
from msrnn import Reduction, Sinks, Window
from msrnn.cli.main import main
from msrnn.diagnostics import soak as module
from msrnn.diagnostics.invariants import check_rows
from msrnn.diagnostics.soak import Interval, draw_soak, soak
from msrnn.recurrence import eviction, transition
from msrnn.reductions.contract import EMPTY

CELL = tiny_cell()
FORMS = ["window:5", "sinks:7:2", "h2o:6", "h2o-layer:6:0", "tova:5", "tova-head:8"]


def end(folder):
    return msrnn.load_state(folder / "state.safetensors")


def counted(rows):
    """What does not depend on the moment."""
    return [(row.read, row.difference, row.near_ties, row.nbytes) for row in rows]


@pytest.mark.parametrize("reduction", FORMS)
def test_it_reads_the_text_over_and_over(reduction, tmp_path):
    text = tokens(0, 1, 37)[0]
    rows = soak(CELL, tmp_path, 100, reduction, text=text, interval=32)
    assert [row.read for row in rows] == [32, 64, 96, 100]
    assert all(row.difference < 1e-8 and row.near_ties == 0 and row.fold_ms > 0 and row.step_ms > 0 for row in rows)
    assert len({row.nbytes for row in rows}) == 1
    _, whole = CELL(text.repeat(3)[None, :100], CELL.initial_state(1, reduction))
    assert_same(end(tmp_path), whole, 1e-8)
    assert json.loads((tmp_path / "record.json").read_text())["intervals"] == [asdict(row) for row in rows]
    assert sorted(os.listdir(tmp_path)) == ["record.json", "state.safetensors"]


def test_random_ids_follow_from_the_seed_and_the_clock(tmp_path):
    for name, n_tokens, seed in (("a", 40, 1), ("a", 70, 1), ("b", 70, 1), ("c", 70, 2)):
        soak(CELL, tmp_path / name, n_tokens, "tova:6", seed=seed, interval=32)
    assert_same(end(tmp_path / "a"), end(tmp_path / "b"), 1e-8)  # asked for more later: the same text
    assert not torch.equal(end(tmp_path / "b")[0].keys, end(tmp_path / "c")[0].keys)
    few = torch.cat([module._ids(CELL, None, 1, 500, block) for block in range(20)])
    assert few.bincount(minlength=50).min() > 130  # of 200 each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_every_dtype(dtype, tmp_path):
    assert soak(tiny_cell(dtype=dtype), tmp_path, 60, "h2o:6", interval=20)[-1].read == 60


# What goes wrong: from token 40 on, in layer 1. The first 32 tokens are sound, and stay saved.


def rows(change):
    """A damage to the rows ``(1, K, S, …)`` of layer 1."""

    def damage(logits, state):
        layers = list(state)
        named = {name: x.clone() for name, x in layers[1].rows.items()}
        change(named)
        layers[1] = layers[1].with_rows(named, layers[1].clock)
        return logits, state.with_layers(layers)

    return damage


def a_row_more(x):
    x.update({name: torch.cat((y, y[:, :, :1]), dim=2) for name, y in x.items()})
    x["positions"][..., -1] = 0


def a_row_less(x):
    x.update({name: y[:, :, 1:] for name, y in x.items()})


def an_empty_row(x):
    x["positions"][0, 1, 2] = -1


def an_empty_column(x):
    x.update({name: torch.cat((y, y[:, :, :1]), dim=2) for name, y in x.items()})
    x["positions"][..., -1] = -1


def one_twice(x):
    x["positions"][0, 1, 0] = x["positions"][0, 1, 1]


def one_to_come(x):
    x["positions"][0, 0, 0] = 1000


def one_that_never_was(x):
    x["positions"][0, 0, 0] = -7


def the_newest_lost(x):
    p = x["positions"]
    p[p == p.max()] = next(q for q in range(20) if q not in p)


def an_infinite_key(x):
    x["keys"][0, 0, 0, 0] = torch.inf


def no_number(x):
    x["accumulated_attention"][0, 0, 0] = torch.nan


def the_clock(logits, state):
    return logits, state.with_layers(replace(H, clock=H.clock - 1) for H in state)


def one_clock(logits, state):
    return logits, state.with_layers(replace(H, clock=H.clock + l) for l, H in enumerate(state))


def storage_that_grows(logits, state):
    large = [torch.cat((H.keys, H.keys.new_zeros(1, 2, int(state.clock), 6)), dim=2)[:, :, : H.keys.shape[2]] for H in state]
    return logits, state.with_layers(replace(H, keys=keys) for H, keys in zip(state, large, strict=True))


def logits_that_are_none(logits, state):
    return logits.clone().index_fill(-1, torch.tensor([3]), torch.nan), state


def logits_a_little_off(logits, state):
    return logits + 1e-7, state


WRONG = [
    (rows(a_row_more), "layer 1: the heads hold .7, 7. rows in 7 columns; expected 6"),
    (rows(a_row_less), "layer 1: the heads hold .5, 5. rows"),
    (rows(an_empty_row), "layer 1: the heads hold .6, 5. rows"),
    (rows(an_empty_column), "layer 1: the heads hold .6, 6. rows in 7 columns"),
    (rows(one_twice), "layer 1: a head holds a position twice"),
    (rows(one_to_come), "layer 1: positions [0-9]+ to 1000 are held"),
    (rows(one_that_never_was), "layer 1: positions -7 to"),
    (rows(the_newest_lost), "layer 1: h2o:6 keeps the first 0 and the newest 3 tokens; some have left"),
    (rows(an_infinite_key), "layer 1: keys are not finite"),
    (rows(no_number), "layer 1: accumulated_attention are not finite"),
    (the_clock, "the clock says"),
    (one_clock, "layer 1: the clock says"),
    (storage_that_grows, "H grew from"),
    (logits_that_are_none, "the logits are not finite"),
    (logits_a_little_off, "logits are 1.0e-07 off the step's; expected 1e-08 at most"),
]


@pytest.mark.parametrize(("damage", "said"), WRONG, ids=lambda x: x[:20] if isinstance(x, str) else "")
def test_what_goes_wrong_in_the_fold_is_told(damage, said, tmp_path, monkeypatch):
    whole = type(CELL).forward

    def forward(self, ids, state, **options):
        logits, after = whole(self, ids, state, **options)
        return (logits, after) if int(after.clock) <= 40 else damage(logits, after)

    monkeypatch.setattr(type(CELL), "forward", forward)
    with pytest.raises(msrnn.Error, match=rf"after \d+ tokens.*{said}"):
        soak(CELL, tmp_path, 128, "h2o:6", interval=32)
    saved = end(tmp_path)
    assert int(saved.clock) <= 64
    monkeypatch.undo()
    assert [row.read for row in soak(CELL, tmp_path, 96, "h2o:6", interval=32)] == [32, 64, 96]  # and it goes on from there


def test_the_end_of_an_interval_is_looked_at_before_it_is_saved(tmp_path, monkeypatch):
    """Far from where fold and step meet."""
    whole = type(CELL).forward

    def forward(self, ids, state, **options):
        logits, after = whole(self, ids, state, **options)
        return rows(one_twice)(logits, after) if int(after.clock) == 320 else (logits, after)

    monkeypatch.setattr(type(CELL), "forward", forward)
    with pytest.raises(msrnn.Error, match="after 320 tokens, by the fold, layer 1: a head holds a position twice"):
        soak(CELL, tmp_path, 480, "tova:6", interval=160)
    assert int(end(tmp_path).clock) == 160


@pytest.mark.parametrize("operator", [Window, Sinks])
def test_what_an_operator_promises_is_held_to_it(operator, tmp_path, monkeypatch):
    """Both ways of reading let the newest go."""
    monkeypatch.setattr(operator, "score", lambda self, seen: -seen.positions[:, :1].double())
    with pytest.raises(msrnn.Error, match=r"layer 0: .*:6.* keeps the first [02] and the newest [46] tokens; some have"):
        soak(CELL, tmp_path, 64, operator(6, *([2] if operator is Sinks else [])), interval=32)


@pytest.mark.parametrize(("way", "name"), [(eviction, "_lowest"), (transition, "lowest")])
def test_another_row_that_leaves_is_told(way, name, tmp_path, monkeypatch):
    """The dearest instead of the cheapest, in one of the two ways of reading."""
    honest = getattr(way, name)
    monkeypatch.setattr(way, name, lambda s, *more: honest((-s).masked_fill(s.isinf(), torch.inf), *more))
    with pytest.raises(msrnn.Error, match=r"layer [01]: position \d+ leaves by the fold and \d+ by the step, of scores"):
        soak(CELL, tmp_path, 64, "tova:6", interval=32)
    assert not list(tmp_path.iterdir())


def test_a_step_that_goes_wrong_is_told(tmp_path, monkeypatch):
    step = type(CELL).step_
    monkeypatch.setattr(type(CELL), "step_", lambda self, token, state: (step(self, token, state)[0] * torch.nan, state))
    with pytest.raises(msrnn.Error, match="by the step: the logits are not finite"):
        soak(CELL, tmp_path, 64, "tova:6", interval=32)


@dataclass(frozen=True)
class Wavering(Reduction):
    """All rows are equal but for a ripple, which is another one for every number of columns: fold and step never agree."""

    ripple: float = 0.0

    def score(self, seen):
        positions = seen.positions[:, :1].double()
        return 1 + self.ripple * (positions * positions.shape[-1]).sin()


def test_near_ties_are_counted_and_others_are_not_near(tmp_path):
    cell = tiny_cell(dtype=torch.float32)
    rows = soak(cell, tmp_path / "near", 96, Wavering(6, ripple=1e-6), interval=32)
    assert all(row.near_ties >= 1 for row in rows)
    assert all(row.difference < 1e-5 for row in rows)  # of the tokens up to there
    with pytest.raises(msrnn.Error, match=r"of scores .* apart"):
        soak(cell, tmp_path / "far", 96, Wavering(6, ripple=1e-2), interval=32)
    with pytest.raises(msrnn.Error, match=r"of scores .* apart"):
        soak(CELL, tmp_path / "exact", 96, Wavering(6, ripple=1e-6), interval=32)  # float64: no excuse


# Killed anywhere.


def test_stopped_before_or_after_any_file_it_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = soak(CELL, tmp_path / "whole", 160, "h2o:6", interval=32)
    replace_file = os.replace
    for n in range(10):  # 5 records, 5 states
        left = [n]

        def stop(source, target, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            replace_file(source, target)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            soak(CELL, tmp_path / str(n), 160, "h2o:6", interval=32)
        monkeypatch.undo()
        (tmp_path / str(n) / ".state.partial-999999999.safetensors").touch()  # as a killed writer leaves it
        assert counted(soak(CELL, tmp_path / str(n), 160, "h2o:6", interval=32)) == counted(whole)
        assert_same(end(tmp_path / str(n)), end(tmp_path / "whole"))  # bit for bit
        assert sorted(os.listdir(tmp_path / str(n))) == ["record.json", "state.safetensors"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_cell(dtype=torch.float32).save(path)
    return path


def command(folder, out, *more, n_tokens=1200):
    arguments = [str(folder), "--reduction", "tova:9", "--tokens", str(n_tokens), "--interval", "40", "--out", str(out)]
    return ["soak", *arguments, *map(str, more)]


def started(folder, out, before):
    """A run in a process of its own that has saved something by itself; its interpreter takes longest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "msrnn", *command(folder, out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(6000):
        if process.poll() is not None or ((out / "state.safetensors").exists() and int(end(out).clock) > before):
            return process
        time.sleep(0.01)
    raise AssertionError("it does not begin")


def test_killed_at_random_moments(folder, tmp_path):
    chance, out, reached = random.Random(0), tmp_path / "killed", [0]
    for _ in range(3):
        with started(folder, out, reached[-1]) as process:
            time.sleep(0.06 * chance.random())  # an interval takes about as long
            process.kill()
        assert process.returncode == -signal.SIGKILL, process.communicate()
        reached.append(int(end(out).clock))
    assert reached == sorted(set(reached))
    assert reached[-1] < 1200
    assert main(command(folder, out)) == 0
    assert main(command(folder, tmp_path / "whole")) == 0
    assert_same(end(out), end(tmp_path / "whole"))
    records = [json.loads((path / "record.json").read_text()) for path in (out, tmp_path / "whole")]
    one, other = ([Interval(**row) for row in record["intervals"]] for record in records)
    assert counted(one) == counted(other)
    assert sorted(os.listdir(out)) == ["record.json", "soak.png", "state.safetensors"]


def test_ctrl_c_says_how_to_go_on(folder, tmp_path):
    with started(folder, tmp_path, 0) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"the same command resumes from the last saved state in {tmp_path}" in err
    assert sorted(os.listdir(tmp_path)) == ["record.json", "state.safetensors"]


# What is refused, and what is shown.


def test_refusals_leave_a_run_as_it_was(folder, tmp_path, capsys):
    tiny_cell(1, torch.float32).save(tmp_path / "other model")
    tiny_cell(dtype=torch.float64).save(tmp_path / "float64")
    out = tmp_path / "run"
    assert main(command(folder, out, n_tokens=80)) == 0
    before = {path: (out / path).read_bytes() for path in os.listdir(out)}
    capsys.readouterr()
    for arguments, said in (
        (command(tmp_path / "other model", out), "another run: state belongs to another model"),
        (command(tmp_path / "float64", out), "another run: state is torch.float32"),
        (command(folder, out, "--reduction", "tova:8"), "holds a run under tova:9; this one is under tova:8"),
        (command(folder, out, "--seed", 2), "contains a run with seed 1; this one has 2"),
        (command(folder, out, "--interval", 41), "contains a run with interval 40; this one has 41"),
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith("msrnn: ")
        assert err.count("\n") == 1
        assert said in err
    cell = msrnn.load(folder)
    with pytest.raises(msrnn.Error, match=r"contains a run with text 'random ids'; this one has '[0-9a-f]{16}'"):
        soak(cell, out, 120, "tova:9", text=tokens(0, 1, 20)[0], seed=1, interval=40)
    assert before == {path: (out / path).read_bytes() for path in os.listdir(out)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reduction", "full"], "the reduction is full; expected one that bounds H"),
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["--text", os.devnull], "is empty"),
        (["--device", "meta"], "meta"),
        (["--text", __file__], "tokenizer.json"),
        (["--out", os.devnull], os.devnull),
    ],
)
def test_refusals_leave_nothing(more, said, folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "new", *more)) == 1
    err = capsys.readouterr().err
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_calls_that_make_no_sense_are_refused(tmp_path):
    for settings, said in (
        ({"reduction": ["tova:5", "full"]}, "full"),
        ({"reduction": None}, "full"),
        ({"n_tokens": 0}, "0 tokens"),
        ({"interval": 0}, "intervals of 0"),
        ({"text": torch.zeros(0).long()}, "T at least 1"),
        ({"text": tokens(0, 1, 5)}, r"shape \(1, 5\)"),
        ({"text": torch.tensor([3, 50])}, "ids from 3 to 50"),
    ):
        with pytest.raises(msrnn.Error, match=said):
            soak(CELL, tmp_path, **{"n_tokens": 10, "reduction": "tova:5", **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / "record.json").unlink(), "no record.json"),
        (lambda out: (out / "record.json").write_text("[]"), "JSON object"),
        (lambda out: (out / "state.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda out: change(out, lambda rows: rows.pop()), "no row for the 64 tokens"),
        (lambda out: change(out, lambda rows: rows.clear()), "no row for the 64 tokens"),
        (lambda out: change(out, lambda rows: rows[0].pop("read")), "incomplete"),
        (lambda out: change(out, lambda rows: rows[0].update(colour="red")), "incomplete"),
        (lambda out: change(out, lambda rows: rows[0].update(read="red")), "incomplete"),
    ],
)
def test_a_damaged_folder_is_refused(damage, said, tmp_path):
    soak(CELL, tmp_path, 64, "tova:5", interval=32)
    damage(tmp_path)
    with pytest.raises(msrnn.Error, match=said):
        soak(CELL, tmp_path, 96, "tova:5", interval=32)


def change(out, edit):
    record = json.loads((out / "record.json").read_text())
    edit(record["intervals"])
    (out / "record.json").write_text(json.dumps(record))


def test_resident_is_what_the_system_says(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert most / 4 < module._resident() <= 1.01 * most
    monkeypatch.setattr(module, "Path", lambda name: tmp_path / "no such system")
    assert module._resident() >= most


def test_the_table_and_the_picture(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "out", n_tokens=120)) == 0
    out = capsys.readouterr().out
    assert "120 tokens read (random ids)" in out
    assert "3 intervals" in out
    assert "fold and step met 3 times" in out
    assert re.search(r"H, MB +\| +0\.00 \| +0\.00 \| +1\.000", out)
    assert main(command(folder, tmp_path / "out", n_tokens=120)) == 0  # nothing left to do: the same again
    assert capsys.readouterr().out == out
    look(tmp_path / "out" / "soak.png")


def test_the_picture_shows_four_curves_in_two_panels(tmp_path):
    for n in (1, 100):
        rows = [Interval(2048 * (i + 1), 3 + i % 3, 30 + i % 7, 1e-5, 0, 6_000_000, 10**9 + 10**7 * (i % 5)) for i in range(n)]
        draw_soak(rows, tmp_path / "soak.png", title="tiny")
        look(tmp_path / "soak.png", 50 if n == 1 else 700)


def look(path, pixels=500):
    """Two frames above each other, fold and step in the upper, the process and H in the lower."""
    picture = imread(path)[..., :3]
    dark = (picture.max(-1) < 0.2).mean(1) > 0.6
    lines = np.flatnonzero(dark & ~np.roll(dark, 1))
    assert len(lines) == 4
    upper, lower = picture[lines[0] : lines[1]], picture[lines[2] : lines[3]]
    colours = {"step": (255, 127, 14), "fold": (31, 119, 180), "process": (44, 160, 44), "H": (214, 39, 40)}
    for name, colour in colours.items():
        shown = [int((np.abs(panel - np.array(colour) / 255).max(-1) < 0.03).sum()) for panel in (upper, lower)]
        own, other = shown if name in ("step", "fold") else shown[::-1]
        assert own > pixels, name
        assert other == 0, name


def test_a_real_book(gguf_path, tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("The sea was calm that morning, and the men were mending their nets. " * 2)
    arguments = ["soak", str(gguf_path), "--text", str(book), "--reduction", "tova:16", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tokens", "80", "--interval", "40"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"80 tokens read \(.*book.txt, \d+ tokens, 2\.\d+ times\)", out)
    assert "0 near-ties" in out


def test_learned_rows_are_not_counted(tmp_path):
    cell = tiny_decoder(memory_tokens=2, persistent=1)
    assert [row.read for row in soak(cell, tmp_path, 64, "tova:6", interval=32)] == [32, 64]
    state = cell(tokens(0, 1, 9), cell.initial_state(1, "tova:6"))[1]
    state[1].positions[0, 1, 2] = EMPTY
    with pytest.raises(msrnn.Error, match="layer 1: of 3 learned rows some are gone"):
        check_rows(state, 9)

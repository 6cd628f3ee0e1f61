"""Finished entries are reused; the folder of another sweep is refused."""

import io
import json

import pytest
from tqdm import tqdm

import msrnn
from msrnn.reporting import sweep as module
from msrnn.reporting.sweep import Sweep
from msrnn.storage.staging import PREFIX

ROWS = {"a": {"a 0": 0, "a 1": 1, "a 2": 2}, "b": {"b 0": 3}}


@pytest.mark.parametrize("kept", [True, False])
def test_pending_yields_unfinished_entries_by_row(kept, tmp_path):
    sweep = Sweep(tmp_path / "x" if kept else None, {"chunk": 8})
    assert list(sweep.pending(ROWS, 2)) == [("a", {"a 0": 0, "a 1": 1}), ("a", {"a 2": 2}), ("b", {"b 0": 3})]
    sweep["a 1"] = {"value": 0.5}
    again = Sweep(tmp_path / "x", {"chunk": 8}) if kept else sweep
    assert again["a 1"] == {"value": 0.5}
    assert list(again.pending(ROWS, 2)) == [("a", {"a 0": 0, "a 2": 2}), ("b", {"b 0": 3})]


def test_progress_starts_at_the_number_of_finished_entries(monkeypatch):
    bars = []

    def record(total, unit, *, initial, enabled):
        bars.append(tqdm(total=total, initial=initial, disable=False, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setattr(module, "progress_bar", record)
    sweep = Sweep(None, {})
    sweep["a 1"] = {}
    pending = sweep.pending(ROWS, 2)
    next(pending)
    assert (bars[0].total, bars[0].n) == (4, 1)
    assert len(list(pending)) == 1
    assert bars[0].n == 4


@pytest.mark.parametrize("key", ["tova:64 on a/b 0", "ünï", "..", "a%2Fb", "con.json"])
def test_every_key_has_its_own_file(key, tmp_path):
    Sweep(tmp_path, {})[key] = {"n": 1}
    assert [p.parent for p in tmp_path.rglob("*.json")].count(tmp_path / "cells") == 1
    assert Sweep(tmp_path, {})[key] == {"n": 1}


def test_another_sweep_is_refused(tmp_path):
    Sweep(tmp_path, {"model": "a", "chunk": 8})
    Sweep(tmp_path, {"model": "a", "chunk": 8})
    with pytest.raises(msrnn.Error, match="with model 'a'; this one has 'b'"):
        Sweep(tmp_path, {"model": "b", "chunk": 8})
    with pytest.raises(msrnn.Error, match="with seed None; this one has 1"):
        Sweep(tmp_path, {"model": "a", "chunk": 8, "seed": 1})
    (tmp_path / "settings.json").write_text('{"model": "a", "chunk": 8}')
    with pytest.raises(msrnn.Error, match=r"with version None; this one has 3 \(use a new folder\)"):
        Sweep(tmp_path, {"model": "a", "chunk": 8})


def test_a_partly_written_entry_is_ignored(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, {})

    def killed(path, facts):
        path.write_text('{"key": "a 0", "rec')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep["a 0"] = {}
    (tmp_path / "cells" / f"{PREFIX}1.json").write_text("{")
    assert len(list(Sweep(tmp_path, {}).pending(ROWS))) == 4


def test_a_damaged_entry_is_refused(tmp_path):
    Sweep(tmp_path, {})["a 0"] = {"n": 1}
    path = tmp_path / "cells" / "a 0.json"
    for damaged, message in (("{", "is not JSON"), (json.dumps({"key": "b", "record": {}}), "is not an entry of a sweep")):
        path.write_text(damaged)
        with pytest.raises(msrnn.Error, match=message):
            Sweep(tmp_path, {})


def test_reused_entries_are_counted(tmp_path):
    sweep = Sweep(tmp_path, {})
    assert sweep.reused(["a", "b"]) == ""
    sweep["a"] = sweep["c"] = {"n": 1}
    assert [key in sweep for key in "abc"] == [True, False, True]
    again = Sweep(tmp_path, {})
    assert (
        again.reused(["a"])
        == f"1 of 1 entries taken from {tmp_path}; the folder also has 1 of other code or other conditions, not used"
    )
    assert again.reused(iter("abc")) == f"2 of 3 entries taken from {tmp_path}, 1 to measure"
    memory = Sweep(None, {})
    memory["a"] = {"n": 1}
    assert memory.reused(["a"]) == ""


def test_entries_of_an_earlier_version_are_refused(tmp_path):
    Sweep(tmp_path, {"chunk": 8})
    (tmp_path / "settings.json").write_text('{"version": 2, "chunk": 8}')
    with pytest.raises(msrnn.Error, match="with version 2; this one has 3"):
        Sweep(tmp_path, {"chunk": 8})


def part(rank, size, together=None):
    sweep = Sweep(None, {})
    sweep["a 1"] = {}
    return list(sweep.pending(ROWS, 1, part=(rank, size), together=together))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_yield_each_batch_once(size):
    parts = [part(rank, size) for rank in range(size)]
    assert sorted((row, *entries) for batches in parts for row, entries in batches) == [
        ("a", "a 0"),
        ("a", "a 2"),
        ("b", "b 0"),
    ]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_that_belong_together_are_yielded_by_one_process():
    assert [part(rank, 2, together=lambda row: row) for rank in range(2)] == [
        [("a", {"a 0": 0}), ("a", {"a 2": 2})],
        [("b", {"b 0": 3})],
    ]
    assert part(1, 2, together=lambda row: "all") == []


def test_entries_of_another_process_are_written_if_they_are_missing(tmp_path):
    shared, own = Sweep(tmp_path / "x", {}), Sweep(tmp_path / "y", {}, finished={"a 0": {"n": 0}})
    shared["a 1"] = {"n": 1}
    shared.add({"a 1": {"n": 9}, "a 2": {"n": 2}}, save=True)
    own.add({"a 1": {"n": 1}}, save=False)
    assert dict(Sweep(tmp_path / "x", {}).finished) == {"a 1": {"n": 1}, "a 2": {"n": 2}}
    assert dict(own.finished) == {"a 0": {"n": 0}, "a 1": {"n": 1}}
    assert not list((tmp_path / "y" / "cells").iterdir())


def test_keys_longer_than_a_file_name_have_files_of_their_own(tmp_path):
    keys = [f"q-filters:64:{'/folder' * 60}/file.safetensors on chunk {i}" for i in range(2)]
    sweep = Sweep(tmp_path, {})
    for i, key in enumerate(keys):
        sweep[key] = {"n": i}
    assert [Sweep(tmp_path, {})[key] for key in keys] == [{"n": 0}, {"n": 1}]

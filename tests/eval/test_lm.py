"""Perplexity equals that of the step loop and of transformers; tables and figure contain the results."""

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_models import assert_close, random_tokens, step_loop, tiny_cell
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from support.transformers_reference import tiny_reference

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.eval import lm, teacher_forcing
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.lm import LMResult, nll, report, score_chunks, truncated_nll
from msrnn.eval.texts import Chunk, read_dataset, split_into_chunks

CELL = tiny_cell()
TEXT = "The boat was small, the sea was not; and on the third day the wind rose again. " * 12


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


def test_chunks_start_with_bos_and_count_their_bytes():
    tokenizer = tiny_tokenizer()
    found = split_into_chunks({"a": TEXT, "b": "the sea"}, tokenizer, 40, 3)
    assert [c.name for c in found] == ["a 0", "a 1", "a 2"]
    whole = tokenizer.encode(TEXT, add_special_tokens=False)
    for i, c in enumerate(found):
        assert c.ids.tolist() == [3, *whole.ids[39 * i : 39 * (i + 1)]]
        assert c.first == 1
        assert c.n_bytes == len(tokenizer.decode(whole.ids[39 * i : 39 * (i + 1)]).encode())
    unmarked = tiny_tokenizer()
    unmarked.post_processor = type(unmarked.post_processor)(single="$A", special_tokens=[])
    first = split_into_chunks({"a": TEXT}, unmarked, 40, 1)[0]
    assert first.ids.tolist() == unmarked.encode(TEXT).ids[:40]
    assert first.n_bytes == len(unmarked.decode(first.ids[1:].tolist()))  # the first token is not predicted


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    chat_cell().save(folder)
    return folder


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


def command(folder, book, *more):
    return ["eval", "lm", str(folder), "--text", str(book), "--chunk", "30", "--sizes", "4", "8", *map(str, more)]


def test_the_command_resumes_and_writes_a_complete_report(folder, book, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "out"
    arguments = command(folder, book, "--out", out, "--operators", "full", "tova", "sinks:SIZE:1", "truncated")
    calls, real = [], lm.score_chunks

    def stopped(cell, chunks, condition, kv_dtype):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((str(condition), [c.name for c in chunks]))
        return real(cell, chunks, condition)

    monkeypatch.setattr(lm, "score_chunks", stopped)
    assert main([*arguments, "--chunks", "2", "--batch", "2"]) == 130
    assert len(list((out / "cells").iterdir())) == 6
    monkeypatch.setattr(lm, "score_chunks", lambda *all: calls.append((str(all[2]), [c.name for c in all[1]])) or real(*all))
    assert main([*arguments, "--chunks", "3", "--batch", "2"]) == 0
    assert calls[:4] == [
        ("full", ["book 0", "book 1"]),
        ("tova:4", ["book 0", "book 1"]),
        ("tova:8", ["book 0", "book 1"]),
        ("full", ["book 2"]),
    ]
    assert len(calls) == len(set(map(str, calls))) == 3 + 3 + 4 * 2
    shown = capsys.readouterr().out
    assert shown == (out / "report.md").read_text()
    records = json.loads((out / "report.json").read_text())
    assert len(records) == 7 * 3
    assert sorted(p.name for p in out.iterdir()) == ["cells", "lm.png", "report.json", "report.md", "settings.json"]
    assert main([*arguments, "--chunks", "3", "--json"]) == 0  # all cells are finished
    assert len(calls) == 14
    assert json.loads(capsys.readouterr().out) == records
    same_cells = command(folder, book, "--out", out, "--operators", "tova", "sinks:8:1", "--chunks", "1")
    assert main(same_cells) == 0  # the same cells under other spec strings
    assert len(calls) == 14
    assert "\n| sinks:8:1 | " in capsys.readouterr().out
    cell, ids = converters.load(folder), split_into_chunks({"book": TEXT}, converters.tokenizer(folder), 30, 1)[0].ids
    one = next(r for r in records if (r["operator"], r["size"], r["chunk"]) == ("sinks:SIZE:1", 8, "book 0"))
    assert one["nll"] == pytest.approx(float(nll(cell, ids[None], "sinks:8:1").sum()), abs=1e-6)
    assert main(["eval", "lm", str(folder), "--text", str(book), "--chunk", "20", "--sizes", "8", "--out", str(out)]) == 1
    assert "with chunk 30; this one has 20" in capsys.readouterr().err


def test_8_bit_rows_of_the_command(folder, book, tmp_path, capsys):
    common = command(folder, book, "--operators", "tova", "truncated", "--chunks", "1", "--out", tmp_path / "out")
    assert main([*common, "--kv-dtype", "int8", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    cell, ids = converters.load(folder), split_into_chunks({"book": TEXT}, converters.tokenizer(folder), 30, 1)[0].ids
    found = next(r["nll"] for r in records if (r["operator"], r["size"]) == ("tova", 8))
    assert found == pytest.approx(float(nll(cell, ids[None], "tova:8", "int8").sum()), abs=1e-6)
    assert abs(found - float(nll(cell, ids[None], "tova:8").sum())) > 1e-4
    truncated = next(r["nll"] for r in records if (r["operator"], r["size"]) == ("truncated", 8))
    assert truncated == pytest.approx(float(lm.truncated_nll(cell, ids[None], 8, "int8").sum()), abs=1e-6)
    assert abs(truncated - float(lm.truncated_nll(cell, ids[None], 8).sum())) > 1e-4
    assert main(common) == 1
    assert "kv_dtype" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["--text", "EMPTY"], "has no text; expected files that end in .txt or .md"),
        (["--text", "BINARY"], "cannot read "),
        (["--chunk", "100000"], "the longest text has"),
        (["--chunk", "1"], "--chunk is 1; expected at least 2"),
        (["--operators", "tovaa"], "no operator is called 'tovaa'"),
        (["--operators", "sinks:SIZE:4", "--sizes", "4", "--against", "sinks:SIZE:4"], "Sinks: sinks is 4"),
        (["--operators", "tova:x"], "reduction 'tova:x': expected the form"),
        (["--operators", "tova", "tova:8"], "--operators has tova:8 twice"),
        (["--sizes", "28"], "--sizes: window:28 changes nothing in the part of a chunk before its last token, of 29 tokens"),
        (["--operators", "full", "window", "--against", "tova"], "--against is 'tova'; expected one of the operators"),
        (["--batch", "1000000000000"], "the machine has"),
        (["--out", "BINARY"], "cannot write"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_errors_occur_before_any_token_is_read(more, message, folder, book, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00 no text")
    places = {"EMPTY": str(tmp_path / "empty"), "BINARY": str(tmp_path / "noise.txt")}
    monkeypatch.setattr(msrnn.Cell, "forward", lambda *_, **__: pytest.fail("a token was read"))
    assert main(command(folder, book, "--sizes", "8", *(places.get(word, word) for word in more))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err


def test_reads_a_data_set_of_the_hub(folder, tmp_path, monkeypatch, capsys):
    """Uses a local folder of the same name instead of the hub."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "books").mkdir(parents=True)
    lines = (json.dumps({"text": TEXT + str(i), "year": i}) + "\n" for i in range(2))
    (tmp_path / "owner" / "books" / "test.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    assert read_dataset("owner/books", "test") == {f"owner/books {i}": TEXT + str(i) for i in range(2)}
    for name, split, message in (
        ("owner/books", "dev", "owner/books is no file or folder, and the hub has no split dev of a data set of this name"),
        ("owner/none", "test", "owner/none is no file or folder, and the hub has no split test"),
    ):
        with pytest.raises(msrnn.Error, match=message):
            read_dataset(name, split)
    (tmp_path / "owner" / "books" / "test.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(msrnn.Error, match="split test of owner/books has words; expected text"):
        read_dataset("owner/books", "test")
    arguments = []
    monkeypatch.setattr("msrnn.eval.inputs.read_dataset", lambda *names: arguments.append(names) or {"one": "too short"})
    assert main(command(folder, "far/away", "--split", "train", "--sizes", "8")) == 1
    assert arguments == [("far/away", "train")]
    assert "the longest text has" in capsys.readouterr().err
    assert main(command(folder, "owner/bok", "--sizes", "8")) == 1
    assert "cannot read owner/bok (No such file or directory)" in capsys.readouterr().err
    assert len(arguments) == 1  # the folder exists, so the name is a path


def test_a_path_that_does_not_exist_is_said_so_without_the_package_of_data_sets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"no/pe is no file or folder, and for a data set of the hub the package datasets is not installed; pip install"
    with pytest.raises(msrnn.Error, match=message):
        read_dataset("no/pe", "test")


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

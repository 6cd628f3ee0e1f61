"""The messages of a split model, counted in two processes."""

import json

from support.benchmarks import SIZE, save_tiny_model
from support.benchmarks import command as bench_command
from support.rank_processes import end, start_ranks


def test_counted_bytes_are_those_of_the_model_of_cost(tmp_path):
    path = tmp_path / "bench.json"
    command = bench_command(save_tiny_model(tmp_path), "--only", "messages,step,peak,scaling", "--json", path)
    (code, out, _), second = map(end, start_ranks(2, *command))
    assert (code, second) == (0, (0, "", ""))
    rows = [row["row"] for row in json.loads(path.read_text())["rows"]]
    counted = {row["workload"].split()[4]: row for row in rows if row["unit"] == "bytes"}
    assert list(counted) == [f"{name}:{SIZE}," for name in ("window", "tova-head", "tova", "h2o-layer")]
    assert {row["ratio"] for row in counted.values()} == {1.0}
    assert counted[f"tova:{SIZE},"]["value"] > counted[f"window:{SIZE},"]["value"]
    notes = {row["workload"]: row["note"] for row in rows if row["note"]}
    assert notes.pop("peak") == "measures one process"
    assert "µs" in notes.pop(f"step_, tova:{SIZE}, float32, 2 ranks")
    assert set(notes.values()) == {"the model is split over 2 ranks"}
    scaling = [row for row in rows if row["workload"].endswith("2 ranks") and row["unit"] in ("ms/token", "tokens/s")]
    assert [row["baseline_name"] for row in scaling] == ["model of cost", ""]
    assert all(row["value"] > 0 for row in scaling)
    assert "on each of 2 ranks" in out

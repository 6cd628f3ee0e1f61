"""A thousand damaged checkpoints are refused in one sentence or read correctly; `fuzz.py` runs more."""

from collections import Counter
from pathlib import Path

import pytest
from fuzzing.checkpoints import FORMATS
from fuzzing.corruptions.registry import OPTIONAL
from fuzzing.fuzz import OUTCOMES, table, trials

LOSSES = ("truncate", "delete_bytes", "empty", "missing", "missing_tensor", "folder", "pipe", "link")


@pytest.mark.filterwarnings("ignore:the tokenizer has ids up to")  # byte-level ids; the embeddings are tiny
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux reports the peak memory of a trial")
def test_a_thousand_damaged_checkpoints(figure):
    outcomes = [outcome for _, outcome in trials(range(1000), 0, list(FORMATS))]
    failed = [f"trial {n}: {x}" for n, x in enumerate(outcomes) if x.outcome == "failed"]
    assert not failed, "\n".join([*failed, table(outcomes)])

    lost = [x for x in outcomes if x.damage.startswith(LOSSES) and not x.damage.endswith((*OPTIONAL, ".json"))]
    assert len(lost) > 50
    assert {x.outcome for x in lost} == {"refused"}  # missing or truncated tensors are never read

    for name in FORMATS:  # each format is often refused, and read after harmless damage
        counts = Counter(x.outcome for x in outcomes if x.format == name)
        assert counts["refused"] > 20, (name, counts)
        assert counts["same"] + counts["another"] > 0, (name, counts)
    counts = Counter(x.outcome for x in outcomes)
    figure("fuzz: " + ", ".join(f"{counts[x]} {x}" for x in OUTCOMES))

"""A thousand damaged checkpoints: refused in a sentence, or read as what they are; `tests/fuzz.py` tries as many as asked."""

from collections import Counter

from checkpoints import FORMATS
from fuzz import table, trials


def test_a_thousand_damaged_checkpoints(figure):
    outcomes = [outcome for _, outcome in trials(range(1000), 0, list(FORMATS))]
    failed = [f"trial {n}: {x}" for n, x in enumerate(outcomes) if x.outcome == "failed"]
    assert not failed, "\n".join([*failed, table(outcomes)])
    for name in FORMATS:  # the fuzzer is awake: each format was refused often, and read after damage that does not matter
        counts = Counter(x.outcome for x in outcomes if x.format == name)
        assert counts["refused"] > 30, (name, counts)
        assert counts["same"] + counts["another"] > 5, (name, counts)
    figure("fuzz: " + ", ".join(f"{count} {what}" for what, count in Counter(x.outcome for x in outcomes).most_common()))

"""The size of the page of a text of 500 tokens on the real model, which has 30 layers."""

from pathlib import Path

import converters
from msrnn.reductions.registry import parse_reduction
from msrnn.watch.codes import PRECISIONS
from msrnn.watch.document import build_document
from msrnn.watch.page import MAX_PAGE_BYTES, render_within_limit
from msrnn.watch.run import observe_run

TEXT = Path(__file__).parents[2] / "README.md"


def test_two_operators_on_500_tokens_fit_into_three_megabytes(smollm, gguf_path, figure):
    tokenizer = converters.tokenizer(gguf_path)
    ids = tokenizer.encode(TEXT.read_text()).ids[:500]
    assert (len(ids), len(smollm.layers)) == (500, 30)
    runs = [observe_run(smollm, ids, parse_reduction(spec), 0) for spec in ("tova:64", "window:64")]
    page, document = render_within_limit(lambda precision: build_document(runs, tokenizer, "SmolLM2", 500, 9, precision))
    figure(f"page of 500 steps, 30 layers, 2 operators: {len(page.encode()) / 1e6:.2f} MB")
    assert len(page.encode()) <= MAX_PAGE_BYTES == 3_000_000
    assert document["precision"]["steps"] >= PRECISIONS[2].steps

"""Equality of step, many-token path, captured step and lookahead on the device of the run, before anything is timed there."""

from collections.abc import Iterator

import torch

from ..cell.cell import Cell
from ..decoding.generate import generate
from ..decoding.speculative import lookahead
from ..diagnostics.invariants import compare_step
from ..errors import Error
from .result import Result
from .settings import Bench
from .step import dtype_name

STEPS = 32
"""Number of tokens that are read by both paths, and number of tokens that are generated."""


def agreement(bench: Bench) -> Iterator[Result]:
    """Check that step, many-token path, captured step and lookahead agree on this device; a difference ends the run.

    A cell with packed weights (``--weights``) is checked in the same way.

    Raises:
        Error: two of them differ by more than the bound for the dtype.
    """
    for dtype in dict.fromkeys((bench.dtype, torch.bfloat16)):
        cell = bench.cell(dtype)
        for spec in (bench.tova, f"h2o:{bench.size}", f"window:{bench.size}"):
            found, _ = compare_step(cell, bench.text(STEPS, start=bench.size + 1), bench.full_state(cell, spec))
            note = f"{found.near_ties} near-ties"
            yield Result(
                f"step and many-token path, {spec}, {dtype_name(cell)}", "mean difference", found.difference, note=note
            )
        yield _captured(bench, cell)
        if dtype in (torch.float32, torch.float64):  # in 16 bits rounding can change a token
            yield _lookahead(bench, cell)


def _captured(bench: Bench, cell: Cell) -> Result:
    workload, state = f"captured step and step_, {bench.tova}, {dtype_name(cell)}", bench.full_state(cell)
    try:
        captured = cell.capture(state)
    except Error as reason:
        return Result(workload, note=str(reason))
    largest = 0.0
    for token in bench.text(STEPS).T:
        (expected, state), (logits, after) = cell.step_(token, state), captured(token)
        largest = max(largest, float((logits - expected).abs().max()))
        if any(not G.positions.equal(H.positions) for G, H in zip(state, after, strict=True)):
            raise Error(f"{workload}: the retained positions differ at token {int(state.clock) - 1}")
    if largest:
        raise Error(f"{workload}: the logits differ by {largest:.1e}; expected 0, because both run the same kernels")
    return Result(workload, "largest difference", largest)


def _lookahead(bench: Bench, cell: Cell) -> Result:
    workload = f"lookahead and generate, {bench.tova}, {dtype_name(cell)}"
    prompt, start = bench.text(bench.size), cell.initial_state(1, bench.tova)
    plain = generate(cell, prompt, start, max_new_tokens=STEPS).tokens
    speculative = lookahead(cell, prompt, start, max_new_tokens=STEPS).tokens
    if not speculative.equal(plain):
        raise Error(f"{workload}: the tokens differ from token {int((speculative != plain)[0].byte().argmax())} on")
    return Result(workload, "tokens", float(STEPS), note="all tokens equal")

"""Speculative decoding compared with greedy decoding, and the cost of a forward pass over several tokens."""

from collections.abc import Iterator
from functools import partial
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..cell.cell import Cell
from ..decoding.generate import generate
from ..decoding.ngram_pool import NgramPool
from ..decoding.speculative import lookahead
from ..state.state import State
from .prompts import PROMPTS, ends_in_loop
from .result import Result, paired
from .settings import STEPS, Bench, in_place_step, repeated
from .timing import Contenders

MAX_NEW_TOKENS = 128
METHODS: dict[str, dict[str, Any]] = {"auto": {"guesses": "auto"}, "one draft of 12": {"ngram": 13, "guesses": 1}}
PAPER: dict[str, Any] = {"window": 15, "ngram": 5, "guesses": 15}
"""Setting of arXiv:2402.02057 for 7B parameters."""
REPETITIVE, LOOP = ("code", "list", "quote"), "in a loop"
"""Kinds of text with a higher target, because drafts should be accepted there; and the kind of answers that end in a loop."""
LENGTHS = (1, 2, 4, 8, 12, 16, 24, 32)


class Continuation(NamedTuple):
    """A prompt, the state after all of its tokens except the last, and the greedy continuation."""

    cell: Cell
    kind: str
    ids: list[int]
    state: State
    greedy: list[int]

    def plain(self) -> list[int]:
        """Return the tokens of greedy decoding."""
        return _greedy(self.cell, self.ids, self.state)

    def speculative(self, method: dict[str, Any]) -> tuple[list[int], float]:
        """Return the tokens of :func:`~msrnn.lookahead` and the tokens per forward pass."""
        pool = NgramPool()
        pool.add(self.ids)
        last = torch.tensor([self.ids[-1:]], device=self.state.clock.device)
        limits = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": self.cell.config.eos_token_ids}
        new, _, _, stats = lookahead(self.cell, last, self.state, pool=pool, **method, **limits)
        return new[0].tolist(), stats.tokens_per_step


class Speed(NamedTuple):
    """Tokens per second and per forward pass of one text; ``equal`` is True if the text is that of greedy decoding."""

    per_second: float
    per_pass: float
    equal: bool


def decode(bench: Bench) -> Iterator[Result]:
    """Compare tokens per second with greedy decoding of the same prompts; each ratio belongs to one text."""
    for spec in ("full", bench.tova):
        for kind, texts in _continuations(bench, spec).items():
            runs = [_speeds(bench, text) for text in texts]
            baselines = [run["greedy"].per_second for run in runs]
            for name in METHODS:
                speeds = [run[name] for run in runs]
                target = "" if kind == LOOP else "≥ 1.3" if kind in REPETITIVE and name == "auto" else "≥ 0.95"
                note = f"{mean(speed.per_pass for speed in speeds):.2f} tokens per forward pass"
                if different := sum(not speed.equal for speed in speeds):
                    note += f", {different} texts differ"
                workload = f"{kind} ({len(texts)}), {spec}, {name}"
                yield paired(workload, "tokens/s", [speed.per_second for speed in speeds], "greedy", baselines, target, note)


def _speeds(bench: Bench, text: Continuation) -> dict[str, Speed]:
    """Return the speed of greedy decoding and of every method."""
    generated = {"greedy": (text.greedy, 1.0)}

    def run(name: str) -> None:
        generated[name] = text.speculative(METHODS[name])

    contenders: Contenders = {"greedy": text.plain, **{name: partial(run, name) for name in METHODS}}
    spent = bench.time(contenders, max(1, bench.rounds // 2), warm_up=False)
    speeds = {name: len(text.greedy) / median(times) for name, times in spent.items()}
    return {name: Speed(speeds[name], pace, new == text.greedy) for name, (new, pace) in generated.items()}


def phrases(bench: Bench) -> Iterator[Result]:
    """Measure tokens per forward pass at the setting of the paper; greedy decoding has 1."""
    for spec in ("full", bench.tova):
        for kind, texts in _continuations(bench, spec).items():
            bar = tqdm(texts, desc=f"{kind}, {spec}", leave=False, disable=bench.bars_disabled)
            found = [text.speculative(PAPER) for text in bar]
            equal = sum(new == text.greedy for (new, _), text in zip(found, texts, strict=True))
            target = "" if kind == LOOP else "≥ 2.2" if kind in REPETITIVE else "≥ 1.5"
            note = f"{equal} of {len(texts)} texts equal to greedy decoding"
            workload = f"{kind} ({len(texts)}), {spec}, window 15, 15 drafts of 4"
            values, ones = [pace for _, pace in found], [1.0] * len(found)
            yield paired(workload, "tokens/pass", values, "greedy", ones, target, note)


def passes(bench: Bench) -> Iterator[Result]:
    """Compare a forward pass over several tokens, with the state after half of them, with a step."""
    cell = bench.cell()
    for spec in ("full", bench.tova):
        state = bench.full_state(cell, spec)
        for m in LENGTHS:
            ids = bench.text(m)
            steps = repeated(in_place_step(cell, state.clone()), ids)
            spent = bench.time({"pass": partial(_forward_pass, cell, ids, state), "step": steps}, 5 * bench.rounds)
            values, baselines = [1e3 * t for t in spent["pass"]], [1e3 * t / STEPS for t in spent["step"]]
            yield paired(f"forward pass of {m} tokens, {spec}", "ms", values, "a step", baselines)


def _continuations(bench: Bench, reduction: str) -> dict[str, list[Continuation]]:
    """Read every prompt and continue it greedily; return the continuations by kind, with loops last as their own kind."""
    cell, tokenizer = bench.cell(), bench.tokenizer()
    kinds: dict[str, list[Continuation]] = {prompt.kind: [] for prompt in PROMPTS}
    kinds[LOOP] = []
    for prompt in tqdm(PROMPTS, desc=f"greedy, {reduction}", leave=False, disable=bench.bars_disabled):
        ids = prompt.encode(cell, tokenizer)
        before = torch.tensor([ids[:-1]], device=bench.device)
        state = cell(before, cell.initial_state(1, reduction), last_only=True)[1]
        greedy = _greedy(cell, ids, state)
        kinds[LOOP if ends_in_loop(greedy) else prompt.kind].append(Continuation(cell, prompt.kind, ids, state, greedy))
    return {kind: texts for kind, texts in kinds.items() if texts}


def _greedy(cell: Cell, ids: list[int], state: State) -> list[int]:
    last = torch.tensor([ids[-1:]], device=state.clock.device)
    return generate(cell, last, state, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=cell.config.eos_token_ids)[0][0].tolist()


def _forward_pass(cell: Cell, ids: Tensor, state: State) -> State:
    return cell.scan(ids, state)[1].at(ids.shape[1] // 2)

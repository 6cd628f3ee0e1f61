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
"""Kinds of text with a higher target, because drafts should be accepted there; and the kind of all answers that end in a loop,
where every draft is accepted."""
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
        new, _, stats = lookahead(self.cell, last, self.state, pool=pool, **method, **limits)
        return new[0].tolist(), stats.tokens_per_step


def decode(bench: Bench) -> Iterator[Result]:
    """Compare tokens per second with greedy decoding of the same prompts; each ratio belongs to one text."""
    for spec in ("full", bench.tova):
        for kind, texts in _continuations(bench, spec).items():
            speeds: dict[str, list[float]] = {name: [] for name in METHODS}
            per_pass, differing, baselines = {name: list[float]() for name in METHODS}, dict.fromkeys(METHODS, 0), list[float]()
            for text in texts:
                found = dict[str, tuple[list[int], float]]()

                def run(name: str, text: Continuation = text, found: dict[str, Any] = found) -> None:
                    found[name] = text.speculative(METHODS[name])

                contenders: Contenders = {"greedy": text.plain, **{name: partial(run, name) for name in METHODS}}
                spent = bench.time(contenders, max(1, bench.rounds // 2), warm_up=False)
                baselines.append(len(text.greedy) / median(spent["greedy"]))
                for name in METHODS:
                    speeds[name].append(len(text.greedy) / median(spent[name]))
                    new, pace = found[name]
                    per_pass[name].append(pace)
                    differing[name] += new != text.greedy
            for name in METHODS:
                target = "" if kind == LOOP else "≥ 1.3" if kind in REPETITIVE and name == "auto" else "≥ 0.95"
                note = f"{mean(per_pass[name]):.2f} tokens per forward pass"
                note += f", {differing[name]} texts differ" if differing[name] else ""
                workload = f"{kind} ({len(texts)}), {spec}, {name}"
                yield paired(workload, "tokens/s", speeds[name], "greedy", baselines, target, note)


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

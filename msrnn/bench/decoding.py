"""Decoding that guesses beside decoding that does not: seconds, tokens a pass, and what a pass of many tokens costs."""

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..cell.cell import Cell
from ..decoding.generate import generate
from ..decoding.ngram_pool import Pool
from ..decoding.speculative import lookahead
from ..state.state import State
from .prompts import PROMPTS, loops
from .result import Row, paired
from .settings import BLOCK, Bench, block_of, moving
from .timing import Ways

COUNT = 128
"""New tokens of a text, at most."""
WAYS: dict[str, dict[str, Any]] = {"auto": {"guesses": "auto"}, "a guess of 12": {"ngram": 13, "guesses": 1}}
PAPER: dict[str, Any] = {"window": 15, "ngram": 5, "guesses": 15}
"""What arXiv:2402.02057 takes for 7B parameters."""
REPEATING, LOOP = ("code", "list", "quote"), "in a loop"
"""Kinds of text in which guesses are hoped to come true; and those that end in a loop, where they do whatever is done."""
LENGTHS = (1, 2, 4, 8, 12, 16, 24, 32)


class Text(NamedTuple):
    """A prompt, read but for its last token, and what greedy decoding writes after it."""

    cell: Cell
    kind: str
    ids: list[int]
    state: State
    greedy: list[int]

    def plain(self) -> list[int]:
        return _plain(self.cell, self.ids, self.state)

    def guessed(self, way: dict[str, Any]) -> tuple[list[int], float]:
        """What is written with guesses, and the tokens a pass."""
        pool = Pool()
        pool.add(self.ids)
        last = torch.tensor([self.ids[-1:]], device=self.state.clock.device)
        facts = {"max_new_tokens": COUNT, "eos_token_id": self.cell.config.eos_token_ids}
        new, _, record = lookahead(self.cell, last, self.state, pool=pool, **way, **facts)
        return new[0].tolist(), record.tokens_per_step


def decode(bench: Bench) -> Iterator[Row]:
    """Tokens a second, each text beside greedy decoding of the same; the ratios are the texts', not the rounds'."""
    for form in ("full", bench.tova):
        for kind, texts in _by_kind(bench, form).items():
            ours: dict[str, list[float]] = {name: [] for name in WAYS}
            paces, parted, theirs = {name: list[float]() for name in WAYS}, dict.fromkeys(WAYS, 0), list[float]()
            for text in texts:
                found = dict[str, tuple[list[int], float]]()

                def guessed(name: str, text: Text = text, found: dict[str, Any] = found) -> None:
                    found[name] = text.guessed(WAYS[name])

                ways: Ways = {"greedy": text.plain, **{name: partial(guessed, name) for name in WAYS}}
                spent = bench.time(ways, max(1, bench.rounds // 2), warm=False)
                theirs.append(len(text.greedy) / median(spent["greedy"]))
                for name in WAYS:
                    ours[name].append(len(text.greedy) / median(spent[name]))
                    new, pace = found[name]
                    paces[name].append(pace)
                    parted[name] += new != text.greedy
            for name in WAYS:
                bound = "" if kind == LOOP else "≥ 1.3" if kind in REPEATING and name == "auto" else "≥ 0.95"
                note = f"{_mean(paces[name]):.2f} tokens a pass{f', {parted[name]} texts parted' if parted[name] else ''}"
                yield paired(f"{kind} ({len(texts)}), {form}, {name}", "tokens/s", ours[name], "greedy", theirs, bound, note)


def phrases(bench: Bench) -> Iterator[Row]:
    """Tokens a pass at the setting that the paper takes for 7B parameters; greedy decoding has 1."""
    for form in ("full", bench.tova):
        for kind, texts in _by_kind(bench, form).items():
            found = [text.guessed(PAPER) for text in tqdm(texts, desc=f"{kind}, {form}", leave=False, disable=_disabled(bench))]
            paces, same = [pace for _, pace in found], sum(new == t.greedy for (new, _), t in zip(found, texts, strict=True))
            bound = "" if kind == LOOP else "≥ 2.2" if kind in REPEATING else "≥ 1.5"
            note = f"{same} of {len(texts)} texts as greedy decoding writes them"
            work, one = f"{kind} ({len(texts)}), {form}, window 15, 15 guesses of 4", [1.0] * len(paces)
            yield paired(work, "tokens a pass", paces, "greedy", one, bound, note)


def passes(bench: Bench) -> Iterator[Row]:
    """What guesses cost: a pass of so many tokens and the state after half of them, beside a step."""
    cell = bench.cell()
    for form in ("full", bench.tova):
        state = bench.full(cell, form)
        for m in LENGTHS:
            ids = bench.text(m)
            ways: Ways = {"pass": partial(_pass, cell, ids, state), "step": block_of(moving(cell, state.clone()), ids)}
            spent = bench.time(ways, 5 * bench.rounds)
            ours, theirs = [1e3 * t for t in spent["pass"]], [1e3 * t / BLOCK for t in spent["step"]]
            yield paired(f"a pass of {m} tokens, {form}", "ms", ours, "a step", theirs)


def _by_kind(bench: Bench, form: str) -> dict[str, list[Text]]:
    """Every prompt, read, by kind; those whose greedy answer ends in a loop last, as a kind of their own."""
    cell, tokenizer = bench.cell(), bench.tokenizer()
    kinds: dict[str, list[Text]] = {prompt.kind: [] for prompt in PROMPTS}
    kinds[LOOP] = []
    for prompt in tqdm(PROMPTS, desc=f"greedy, {form}", leave=False, disable=_disabled(bench)):
        ids = prompt.encode(cell, tokenizer)
        before = torch.tensor([ids[:-1]], device=bench.device)
        state = cell(before, cell.initial_state(1, form), last_only=True)[1]
        greedy = _plain(cell, ids, state)
        kinds[LOOP if loops(greedy) else prompt.kind].append(Text(cell, prompt.kind, ids, state, greedy))
    return {kind: texts for kind, texts in kinds.items() if texts}


def _plain(cell: Cell, ids: list[int], state: State) -> list[int]:
    last = torch.tensor([ids[-1:]], device=state.clock.device)
    return generate(cell, last, state, max_new_tokens=COUNT, eos_token_id=cell.config.eos_token_ids)[0][0].tolist()


def _pass(cell: Cell, ids: Tensor, state: State) -> State:
    return cell.scan(ids, state)[1].at(ids.shape[1] // 2)


def _disabled(bench: Bench) -> bool | None:
    return None if bench.progress else True


def _mean(x: list[float]) -> float:
    return sum(x) / len(x)

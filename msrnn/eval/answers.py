"""Answers of a model to prompts, by greedy decoding from a bounded state, and batches of questions."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch

from ..cell.cell import Cell
from ..decoding.generate import generate
from ..reductions.contract import Reduction
from .teacher_forcing import pad_right

if TYPE_CHECKING:
    import tokenizers


class Answer(NamedTuple):
    """An answer.

    Attributes:
        text: the text before the stop string.
        tokens: number of generated tokens, with those of the stop string or eos.
        ended: True if eos or the stop string was generated.
    """

    text: str
    tokens: int
    ended: bool


class Grouped(Protocol):
    """A question. Only questions of one ``group`` are read as one batch, because their prompts are of similar length."""

    @property
    def group(self) -> Hashable: ...


Question = TypeVar("Question", bound=Grouped)


def split_into_batches(questions: Sequence[Question], batch_size: int) -> list[list[Question]]:
    """Return batches of at most ``batch_size`` questions of one group, in the order of the first question of each group."""
    groups: dict[Hashable, list[Question]] = {}
    for q in questions:
        groups.setdefault(q.group, []).append(q)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


@torch.no_grad()
def write_answers(
    cell: Cell,
    tokenizer: "tokenizers.Tokenizer",
    prompts: Sequence[str],
    reduction: Reduction | str,
    limits: Sequence[int],
    stop: str | None = None,
) -> list[Answer]:
    """Read prompts by the many-token path, and decode greedily. Tokens that all prompts begin with are read once.

    Args:
        cell, tokenizer: the model. The prompts are plain text; no chat template is used.
        prompts: the prompts.
        reduction: the operator that evicts rows, for the prompts and for the answers.
        limits: for each prompt, the maximum number of tokens of the answer.
        stop: text that ends an answer. None: only eos ends it.

    Returns:
        One answer per prompt, in their order.
    """
    ids, device, eos = [tokenizer.encode(prompt).ids for prompt in prompts], cell.device, cell.config.eos_token_ids
    shortest = min(map(len, ids)) - 1  # at least one token per row is left
    common = next((i for i in range(shortest) if len({row[i] for row in ids}) > 1), shortest)
    state = cell.initial_state(1, reduction)
    if common:
        _, state = cell(torch.tensor([ids[0][:common]], device=device), state, last_only=True)
    rest = [row[common:] for row in ids]
    lengths = torch.tensor([len(row) for row in rest], device=device)
    new, after, _ = generate(
        cell,
        pad_right(rest).to(device),
        state.select([0] * len(rest)),
        lengths=lengths,
        max_new_tokens=max(limits),
        eos_token_id=eos,
        stop=stop,
        tokenizer=None if stop is None else tokenizer,
    )
    answers = []
    for row, n_read, prompt, limit in zip(new.tolist(), after.clock.tolist(), ids, limits, strict=True):
        written = row[: min(limit, n_read - len(prompt))]  # a finished row repeats its last token
        text, found, _ = tokenizer.decode(written).partition(stop) if stop else (tokenizer.decode(written), "", "")
        answers.append(Answer(text, len(written), bool(found) or (bool(written) and written[-1] in eos)))
    return answers

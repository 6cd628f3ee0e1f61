r"""Who leaves at each of many tokens, found without asking token by token.

What token t sees depends on who left before it, and who leaves at t on what t sees: a recurrence. But the rows that leave would
hardly have changed the rest had they stayed, so it is solved as a fixed point. Guess who leaves at every token of a block; look
at all tokens at once as if the guess were true; where the operator's choice is the guess, from the first token on, it is the
truth, and where it first is not, the right answer is now known. Guess the rest anew and look again. Every look settles at least
one token, and mostly all of them; what comes out is what the step loop decides, row for row.

A look lays the tokens of a block side by side in the batch, so an operator's ``score`` is written once, for one token. To be
known at every token of a guess, the numbers of an operator have to add up (``additive``); other operators are asked token by
token, by the same look.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..layers.attention import mask_logits
from ..reductions.contract import EMPTY, Observation, Reduction
from .block_layout import Frame
from .operator_calls import above_lowest, retention_scores, update_stats


@dataclass(frozen=True)
class Block:
    """T tokens of one layer and the R = S + T rows that any of them could see: S carried over, then their own.

    Attributes:
        reduction: the operator.
        frame: what does not depend on who leaves.
        logits: ``(B, K, G, T, R)`` in at least float32, −inf where the frame hides a row; of an operator that is ``blind``
            ``(B, K, 1, T, R)`` zeros.
        positions: ``(B, K, R)`` int64, ascending but for −1 where a row is empty or its token is not read.
        until: ``(B, 1 or K, R)`` int64, the last token to see each row: T where it stays, −1 where a row is empty; a token that
            is not read is seen by itself alone. 1 where it is the same for all heads.
        numbers: the operator's, ``(B, K, R)`` or ``(B, K, R, n)`` each, before the first token.
        keys: ``(B, K, R, D)`` of an operator that is ``keyed``, otherwise None.
        n_learned: how many rows, the first ones, never leave.
    """

    reduction: Reduction
    frame: Frame
    logits: Tensor
    positions: Tensor
    until: Tensor
    row_stats: dict[str, Tensor]
    keys: Tensor | None = None
    n_learned: int = 0

    @property
    def T(self) -> int:
        """How many tokens."""
        return self.frame.clock.shape[1]

    def hidden(self, start: int, stop: int) -> Tensor:
        """``(B, 1 or K, t, R)`` bool: the rows that tokens ``start`` to ``stop`` do not see."""
        before = self.frame.hidden[:, :, start:stop]
        if self.until is self.frame.until:
            return before
        return (self.until[:, :, None] < torch.arange(start, stop, device=before.device)[:, None]) | before


@dataclass(frozen=True)
class Look:
    """What ``t`` tokens of a block see under a guess.

    Attributes:
        weights: ``(B, K, G, t, R)``.
        numbers: after each token, ``(B, t, K, R)`` each.
        score: ``(B, t, 1 or K, R)``, the operator's, whatever on rows that are not there.
        hidden: ``(B, t, 1 or K, R)`` bool, the rows that are not there.
        n_learned: how many rows, the first ones, never leave.
    """

    weights: Tensor
    row_stats: dict[str, Tensor]
    score: Tensor
    hidden: Tensor
    n_learned: int
    tie_tolerance: float

    @property
    def excluded(self) -> Tensor:
        """``(B, t, 1 or K, R)`` bool: rows that cannot be evicted, because they are absent or learned."""
        if not self.n_learned:
            return self.hidden
        return self.hidden | (torch.arange(self.hidden.shape[-1], device=self.hidden.device) < self.n_learned)

    def cost(self) -> Tensor:
        """``(B, t, 1 or K, R)``: the score, +inf on excluded rows, to propose evictions by. Near-ties become ties."""
        cost = self.score.clamp(max=torch.finfo(self.score.dtype).max)  # a row of score +inf comes before an excluded row
        if self.tie_tolerance:
            mantissa, exponent = torch.frexp(cost)
            cost = torch.ldexp((mantissa * 2**16).round(), exponent - 16)
        return torch.where(self.excluded, torch.inf, cost)

    def lowest(self, evicts: Tensor) -> Tensor:
        """``(B, t, 1 or K)``: the row to evict, the first of the lowest; −1 where no row is evicted."""
        higher = above_lowest(self.score, self.excluded, self.tie_tolerance)
        return torch.where(evicts[..., : higher.shape[2]], higher.byte().argmin(-1), -1)

    def first(self, stop: int) -> "Look":
        """The first ``stop`` tokens of it."""
        row_stats = {name: x[:, :stop] for name, x in self.row_stats.items()}
        part = (self.weights[:, :, :, :stop], row_stats, self.score[:, :stop], self.hidden[:, :stop])
        return Look(*part, self.n_learned, self.tie_tolerance)

    def last(self) -> dict[str, Tensor]:
        """The numbers after the last token, ``(B, K, R)`` each."""
        return {name: x[:, -1].clone() for name, x in self.row_stats.items()}


@torch.no_grad()
def decide(block: Block, want_scores: bool = False) -> tuple[Block, list[Look]]:
    """The block with ``until`` as the operator decides, and what its tokens see then, in one look or several in a row.

    ``want_scores``: score at every token; otherwise only where a row is evicted.
    """
    T, leaves, row_stats, operator = block.T, block.frame.leaves, block.row_stats, block.reduction
    if operator.depends_on_row_layout or (row_stats and not operator.update_is_additive):
        return _decide_by_token(block, want_scores)
    look = _look(block, 0, T, row_stats, scored=want_scores or not block.frame.still)
    if block.frame.still:
        return block, [look]
    nobody = look.cost()
    leaves = leaves[..., : nobody.shape[2]].expand(-1, -1, nobody.shape[2])  # (B, T, 1 or K)
    ties = not operator.needs_weights or operator.tie_tolerance > 0
    cheapest = _cheapest(nobody, min(T, nobody.shape[3]), ties)
    guess, settled = torch.full_like(leaves, -1, dtype=torch.int64), torch.zeros_like(leaves[:, 0], dtype=torch.int64)
    start, stop, looks = 0, T, list[Look]()
    while start < T:
        guess = _guess(cheapest, leaves, guess, settled)
        guessed = _gone(block, guess)
        look = _look(guessed, start, stop, row_stats)
        choice = look.lowest(leaves[:, start:stop])
        if stop == T and choice.equal(guess[:, start:]):
            return guessed, [*looks, look]
        wrong = choice != guess[:, start:stop]
        first = torch.where(wrong.any(1), wrong.byte().argmax(1), stop - 1 - start)  # (B, 1 or K); all up to here is settled
        guess.scatter_(1, start + first[:, None], choice.gather(1, first[:, None]))
        settled, more = start + first + 1, int(first.amin()) + 1
        looks.append(look.first(more))
        row_stats = looks[-1].last()
        start += more
        stop = min(T, start + 4 * more)  # not much further than the guess was good for
    return _gone(block, guess), looks


def _decide_by_token(block: Block, want_scores: bool) -> tuple[Block, list[Look]]:
    """:func:`decide` with one call of the operator per token, as the step calls it."""
    T, evicts, row_stats = block.T, block.frame.leaves, block.row_stats
    first = T if block.frame.still else int(evicts.flatten(2).any(-1).any(0).byte().argmax())  # first token of an eviction
    looks, start = list[Look](), 0
    if first and not row_stats and not want_scores:
        looks.append(_look(block, 0, first, row_stats, scored=False))  # no call is needed before
        start = first
    for t in range(start, T):
        look = _look(block, t, t + 1, row_stats, scored=want_scores or t >= first, every_row=want_scores)
        row_stats = look.last()
        block = _gone(block, look.lowest(evicts[:, t : t + 1]), t)
        looks.append(look)
    return block, looks


def left(positions: Tensor, until: Tensor, T: int) -> Tensor:
    """``(B, K, T)`` int64: the position that left at each of T tokens, −1 none; of rows as a :class:`Block` has them."""
    nobody = positions.new_full((*positions.shape[:2], T + 1), EMPTY)  # the last for rows that stay, or never were
    return nobody.scatter_(2, until.masked_fill(until < 0, T).expand_as(positions), positions)[..., :T]


def _look(
    block: Block, start: int, stop: int, row_stats: dict[str, Tensor], scored: bool = True, every_row: bool = True
) -> Look:
    """Tokens ``start`` to ``stop``, given the statistics before the first of them.

    ``scored``: call ``score``; scores are 0 otherwise. ``every_row``: also for batch rows in which no row is evicted.
    """
    operator, (B, T) = block.reduction, (block.frame.clock.shape[0], stop - start)
    hidden = block.hidden(start, stop)  # (B, 1 or K, t, R)
    weights = block.logits[..., start:stop, :]
    if operator.needs_weights:
        weights = (weights if block.until is block.frame.until else mask_logits(weights, ~hidden[:, :, None])).softmax(dim=-1)
    hidden = hidden.transpose(1, 2)  # (B, t, 1 or K, R)

    def aside(x: Tensor) -> Tensor:  # (B, t, …) -> (B t, …), each token a row of the batch
        return x.expand(B, T, *x.shape[2:]).flatten(0, 1)

    positions = block.positions[:, None]
    if operator.depends_on_row_layout or operator.depends_on_other_positions:
        positions = positions.masked_fill(hidden, EMPTY)  # heads that hold as many rows may hold other ones
    if operator.update_is_additive:
        before = {name: x.new_zeros(B * T, *x.shape[1:]) for name, x in row_stats.items()}
    else:
        before = {name: aside(x[:, None]) for name, x in row_stats.items()}
    clock = aside(block.frame.clock[:, start:stop])
    active = aside(block.frame.active[:, start:stop]) if operator.depends_on_row_layout else None
    keys = None if block.keys is None else aside(block.keys[:, None])
    seen = Observation(aside(weights.movedim(3, 1)), aside(positions), clock, before, keys)
    after = {name: x.unflatten(0, (B, T)) for name, x in update_stats(operator, seen, active).items()}  # (B, t, K, R)
    for name, x in after.items():
        idle = hidden | ~block.frame.active[:, start:stop, None, None]
        old, still = row_stats[name][:, None], idle.view(*idle.shape, *(1,) * (x.ndim - 4))  # (B, 1, K, R), (B, t, 1 or K, R)
        if operator.update_is_additive:
            more = torch.where(still, 0, x)
            more[:, :1] += old
            after[name] = more.cumsum_(1)  # in the step loop's order
        else:
            after[name] = torch.where(still, old, x)
    if scored:
        seen = seen._replace(row_stats={name: aside(x) for name, x in after.items()}) if after else seen
        n_rows = operator.size + block.n_learned + 1 if isinstance(operator.size, int) and not every_row else None
        score = retention_scores(operator, seen, active, n_rows).unflatten(0, (B, T))
        if block.n_learned:
            score[..., : block.n_learned] = torch.inf
    else:
        score = weights.new_zeros(()).expand(B, T, 1, hidden.shape[-1])
    return Look(weights, after, score, hidden[:, :, : score.shape[2]], block.n_learned, operator.tie_tolerance)


def _cheapest(cost: Tensor, k: int, ties: bool) -> Tensor:
    """``(B, t, 1 or K, R) -> (B, t, 1 or K, k)``: the k cheapest rows; the first of equals first, if many are (which takes
    longer)."""
    return cost.sort(dim=-1, stable=True).indices[..., :k] if ties else cost.topk(k, largest=False).indices


def _gone(block: Block, rows: Tensor, start: int = 0) -> Block:
    """The block once row ``rows[:, t] (B, 1 or K)``, no row twice, has left at token ``start + t``; −1 is none."""
    heads, R = max(block.until.shape[1], rows.shape[2]), block.until.shape[2]
    index = torch.where(rows < 0, R, rows).expand(-1, -1, heads).transpose(1, 2)  # (B, 1 or K, t); one row more is nobody
    time = torch.arange(start, start + rows.shape[1], device=rows.device).expand_as(index)
    until = torch.cat((block.until, block.until[..., :1]), dim=-1).expand(-1, heads, -1)
    return replace(block, until=until.scatter(2, index, time)[..., :R])


def _guess(cheapest: Tensor, leaves: Tensor, known: Tensor, settled: Tensor) -> Tensor:
    """Who leaves, ``(B, T, 1 or K)``, −1 where nobody ``leaves``: what is ``known`` of the settled tokens, then in turn the
    cheapest row not yet taken, by ``cheapest (B, T, 1 or K, T)``: the cheapest rows in order, as they are if nobody leaves.

    Any guess would do that takes no row twice. On lists: it is a matter of single numbers.
    """
    B, T, heads = known.shape
    guess, stops, ranks, go = known.tolist(), settled.tolist(), cheapest.tolist(), leaves.tolist()
    for b in range(B):
        for h in range(heads):
            stop = stops[b][h]
            taken = {guess[b][t][h] for t in range(stop)}
            for t in range(stop, T):
                row = -1
                if go[b][t][h]:
                    for row in ranks[b][t][h]:
                        if row not in taken:
                            break
                    taken.add(row)
                guess[b][t][h] = row
    return torch.tensor(guess, device=known.device)

"""The tables of ``msrnn eval recovery``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..reporting.report import Report, Table
from ..reporting.statistics import Mean, mean, paired
from ..train.finetune import FinetuneConfig

FULL = "full"
Losses = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class RecoveryResult:
    """One model.

    Attributes:
        trained: operator of its fine-tuning; empty for the base.
        seed: seed of its fine-tuning.
        losses: nats per token of each held-out chunk, by the name of the text and the operator under which it was read.
        curve: training loss of each step.
    """

    trained: str
    seed: int
    losses: Losses
    curve: Sequence[float]


def report(results: Sequence[RecoveryResult], operators: Sequence[str], config: FinetuneConfig, length: int) -> Report:
    """Return the losses, their paired differences over the chunks, and the differences by seed.

    Args:
        results: the base, and two adapters for each seed.
        operators: ``full`` and the bounded operator.
        config: of the fine-tuning.
        length: tokens of a held-out chunk.
    """
    bounded, texts = operators[1], list(results[0].losses)
    titles = {"": "base", **{x: f"trained through {x}" for x in operators}}
    means = {x: {text: {y: _mean_over_seeds(results, x, text, y) for y in operators} for text in texts} for x in titles}
    seeds, n = sorted({x.seed for x in results if x.trained}), len(results[0].losses[texts[0]][FULL])
    note = (
        f"Held-out loss in nats per token: mean over {n} chunks of {length:,} tokens of each text and over {len(seeds)} seeds; "
    )
    note += f"{config.steps} steps of {config.chunk_length} tokens, LoRA rank {config.r} on {', '.join(config.target_modules)}."
    rows = [
        [title, *(f"{mean(means[x][text][y]).value:.4f}" for text in texts for y in operators)] for x, title in titles.items()
    ]
    tables = [
        Table("Loss by operator in training and in reading", ["", *(f"{t}, {y}" for t in texts for y in operators)], rows, note)
    ]

    def differences(label: str, one: tuple[str, str], other: tuple[str, str]) -> list[str]:
        """Return a row: the loss of one model under an operator minus that of another, ``(trained, read)`` each."""
        found = (paired(means[one[0]][text][one[1]], means[other[0]][text][other[1]]) for text in texts)
        return [label, *(f"{x:+.4f}" for x in found)]

    rows = [differences(f"{title}: {bounded} − {FULL}", (x, bounded), (x, FULL)) for x, title in titles.items()]
    for read in operators[::-1]:
        label = f"read under {read}: trained through {bounded} − through {FULL}"
        rows.append(differences(label, (bounded, read), (FULL, read)))
    note = "Mean ± standard error over the chunks; the losses of a chunk are averaged over the seeds first. Negative is better."
    tables.append(Table("Paired differences in nats per token", ["", *texts], rows, note))
    rows = [[f"seed {seed}", *(f"{_by_seed(results, seed, text, bounded):+.4f}" for text in texts)] for seed in seeds]
    rows.append(["share of the eviction cost of the base", *(_share(means, text, bounded) for text in texts)])
    note = f"Trained through {bounded} − through {FULL}, both read under {bounded}; a share above 0: the former is better."
    tables.append(Table("The same by seed", ["", *texts], rows, note))
    return Report(tables, [asdict(x) for x in results])


def _mean_over_seeds(results: Sequence[RecoveryResult], trained: str, text: str, read: str) -> list[float]:
    """Return the mean over the seeds of the loss of each chunk."""
    columns = zip(*(x.losses[text][read] for x in results if x.trained == trained), strict=True)
    return [mean(column).value for column in columns]


def _by_seed(results: Sequence[RecoveryResult], seed: int, text: str, bounded: str) -> Mean:
    one, other = (next(x for x in results if (x.trained, x.seed) == (y, seed)) for y in (bounded, FULL))
    return paired(one.losses[text][bounded], other.losses[text][bounded])


def _share(means: Mapping[str, Losses], text: str, bounded: str) -> str:
    """Return by how much training through the operator is better, relative to what the operator costs the base."""
    cost = mean(means[""][text][bounded]).value - mean(means[""][text][FULL]).value
    gain = mean(means[FULL][text][bounded]).value - mean(means[bounded][text][bounded]).value
    return f"{gain / cost:.0%}" if cost > 0 else "no cost"

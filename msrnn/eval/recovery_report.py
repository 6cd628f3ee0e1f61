"""The tables of ``msrnn eval recovery``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import counted
from ..reporting.report import Report, Table
from ..reporting.statistics import Mean, mean, paired
from ..train.finetune import FinetuneConfig

BASE, FULL = "", "full"
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
    texts = list(results[0].losses)
    means = {
        trained: {text: {read: _mean_over_seeds(results, trained, text, read) for read in operators} for text in texts}
        for trained in (BASE, *operators)
    }
    seeds, n = sorted({x.seed for x in results if x.trained}), len(results[0].losses[texts[0]][FULL])
    note = (
        f"Held-out loss in nats per token: mean over {counted(n, 'chunk')} of {length:,} tokens of each text and over "
        f"{counted(len(seeds), 'seed')}; {counted(config.steps, 'step')} of {config.chunk_length} tokens, LoRA rank {config.r} "
        f"on {', '.join(config.target_modules)}."
    )
    tables = [
        _loss_table(means, note),
        _difference_table(means, operators[1]),
        _seed_table(means, results, seeds, operators[1]),
    ]
    return Report(tables, [asdict(x) for x in results])


def _loss_table(means: Mapping[str, Losses], note: str) -> Table:
    columns = [(text, read) for text, losses in means[BASE].items() for read in losses]
    rows = [
        [_title(trained), *(f"{mean(losses[text][read]).value:.4f}" for text, read in columns)]
        for trained, losses in means.items()
    ]
    header = ["", *(f"{text}, {read}" for text, read in columns)]
    return Table("Loss by operator in training and in reading", header, rows, note)


def _difference_table(means: Mapping[str, Losses], bounded: str) -> Table:
    def differences(label: str, one: tuple[str, str], other: tuple[str, str]) -> list[str]:
        """Return a row: the loss of one model under an operator minus that of another, ``(trained, read)`` each."""
        found = (paired(means[one[0]][text][one[1]], means[other[0]][text][other[1]]) for text in means[BASE])
        return [label, *(f"{x:+.4f}" for x in found)]

    by_model = [differences(f"{_title(x)}: {bounded} − {FULL}", (x, bounded), (x, FULL)) for x in means]
    by_operator = [
        differences(f"read under {read}: trained through {bounded} − through {FULL}", (bounded, read), (FULL, read))
        for read in (bounded, FULL)
    ]
    note = "Mean ± standard error over the chunks; the losses of a chunk are averaged over the seeds first. Negative is better."
    return Table("Paired differences in nats per token", ["", *means[BASE]], by_model + by_operator, note)


def _seed_table(means: Mapping[str, Losses], results: Sequence[RecoveryResult], seeds: Sequence[int], bounded: str) -> Table:
    texts = list(means[BASE])
    rows = [[f"seed {seed}", *(f"{_by_seed(results, seed, text, bounded):+.4f}" for text in texts)] for seed in seeds]
    rows.append(["share of the eviction cost of the base", *(_share(means, text, bounded) for text in texts)])
    note = f"Trained through {bounded} − through {FULL}, both read under {bounded}; a share above 0: the former is better."
    return Table("The same by seed", ["", *texts], rows, note)


def _title(trained: str) -> str:
    return f"trained through {trained}" if trained else "base"


def _mean_over_seeds(results: Sequence[RecoveryResult], trained: str, text: str, read: str) -> list[float]:
    """Return the mean over the seeds of the loss of each chunk."""
    columns = zip(*(x.losses[text][read] for x in results if x.trained == trained), strict=True)
    return [mean(column).value for column in columns]


def _by_seed(results: Sequence[RecoveryResult], seed: int, text: str, bounded: str) -> Mean:
    one, other = (next(x for x in results if (x.trained, x.seed) == (y, seed)) for y in (bounded, FULL))
    return paired(one.losses[text][bounded], other.losses[text][bounded])


def _share(means: Mapping[str, Losses], text: str, bounded: str) -> str:
    """Return by how much training through the operator is better, relative to what the operator costs the base."""
    cost = mean(means[BASE][text][bounded]).value - mean(means[BASE][text][FULL]).value
    gain = mean(means[FULL][text][bounded]).value - mean(means[bounded][text][bounded]).value
    return f"{gain / cost:.0%}" if cost > 0 else "no cost"

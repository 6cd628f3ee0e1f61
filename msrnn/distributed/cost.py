"""A model of the cost of a split cell: bytes of a rank, bytes that it sends, and seconds of a step, in 16 bits by default.

The model is a roofline (Williams et al. 2009, doi:10.1145/1498765.1498785). A step reads its part of the weights and H once.
Their bytes divided by the memory bandwidth bound its time from below, unless its floating-point operations do. Collectives add
their latency, and their bytes divided by the bandwidth of the link, because every layer waits for the sum. docs/distributed.md
compares the result with the figures of the paper and with what was measured.

Functions of a shape and a number of ranks raise the errors of :meth:`Shape.held_kv_heads`.
"""

from dataclasses import dataclass
from math import floor, inf

from ..errors import check_int
from .model_shape import ITEMSIZE, Shape

SCORE_BYTES = 4
"""Bytes of a float32 score."""
EFFICIENT_SHARE = 0.1
"""Maximum share of a step that the communication of an efficient batch takes."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or the cores of one rank.

    Attributes:
        name: for tables.
        memory: bytes.
        bandwidth: of its memory, bytes per second.
        link: to the other ranks, bytes per second in one direction.
        flops: floating-point operations per second in 16 bits, dense.
        latency: seconds of an all-reduce of a few kilobytes; an assumption.
        reserved: bytes that neither weights nor H may use: context of the driver, activations; an assumption.
    """

    name: str
    memory: float
    bandwidth: float
    link: float
    flops: float
    latency: float = 20e-6
    reserved: float = 1e9


V100 = Device("V100 32 GB", 32 * 2**30, 900e9, 150e9, 125e12)
A100 = Device("A100 80 GB", 80 * 2**30, 2039e9, 300e9, 312e12)
H100 = Device("H100 80 GB", 80 * 2**30, 3350e9, 450e9, 989e12)
"""SXM modules with NVLink: data sheets of NVIDIA for V100 (2020), A100 80GB (2021) and H100 (2023). None was measured here."""


def free_bytes(shape: Shape, device: Device, ranks: int = 1) -> float:
    """Return the bytes of one rank that remain for H; negative if the weights do not fit."""
    return device.memory - device.reserved - ITEMSIZE * shape.parameters(ranks)


def largest_batch(shape: Shape, device: Device, rows: int, ranks: int = 1) -> int:
    """Return how many sequences of ``rows`` rows fit, at least one row; 0 if the weights do not fit."""
    check_int("rows", rows)
    return max(0, floor(free_bytes(shape, device, ranks) / (rows * shape.row_bytes(ranks))))


def longest_context(shape: Shape, device: Device, ranks: int = 1) -> int:
    """Return how many tokens of one sequence an unbounded H can hold; 0 if the weights do not fit."""
    return largest_batch(shape, device, 1, ranks)  # as many as sequences of one row


@dataclass(frozen=True)
class MessageBytes:
    """Bytes that one token of one sequence adds to the tensors of the collectives.

    Attributes:
        layer: of the all-reduces after o and after down, per layer.
        scores: of the all-gather of the scores, per layer and rank.
        embedding: of the all-reduce after the embedding, per step.
        logits: of the all-gather of the logits, per step, of all ranks together.
    """

    layer: int
    scores: int
    embedding: int
    logits: int


def message_bytes(shape: Shape, scores: int = 0, itemsize: int = ITEMSIZE) -> MessageBytes:
    """Return the bytes that a token adds to the tensors that the ranks sum or gather.

    Args:
        shape: the model.
        scores: scores per layer that every rank needs from all others before the eviction: ``size + 1`` for TOVA and H2O with
            one decision per layer, 0 for operators that decide per head or see no attention weights.
        itemsize: bytes of an activation and of a logit.
    """
    width = shape.width * itemsize
    return MessageBytes(shape.sublayers * width, scores * SCORE_BYTES, width, shape.vocab_size * itemsize)


def contributed_per_token(shape: Shape, ranks: int, scores: int = 0, itemsize: int = ITEMSIZE) -> int:
    """Return the bytes of the tensors that a rank passes to the collectives for one token; arguments as in `message_bytes`."""
    shape.held_kv_heads(ranks)  # for its check
    n = message_bytes(shape, scores, itemsize)
    logits = -(-shape.vocab_size // ranks) * itemsize  # padded to those of the rank with the most ids
    return shape.layers * (n.layer + n.scores) + n.embedding + logits


def sent_bytes(payload: float, ranks: int) -> float:
    """Return what each rank sends for an all-reduce of ``payload`` bytes by the ring algorithm: 2 (R − 1) / R of it.

    Source: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
    """
    return 2 * (ranks - 1) / ranks * payload


def sent_per_token(shape: Shape, ranks: int, scores: int = 0, itemsize: int = ITEMSIZE) -> float:
    """Return the bytes that each rank sends for one token. In an all-gather it sends its own part to all others."""
    shape.held_kv_heads(ranks)  # for its check
    n = message_bytes(shape, scores, itemsize)
    summed = shape.layers * n.layer + n.embedding
    return sent_bytes(summed, ranks) + (ranks - 1) * (shape.layers * n.scores + n.logits / ranks)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of a batch: reading weights and H, and the collectives. They do not overlap."""

    compute: float
    communication: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.communication


def step_time(
    shape: Shape, device: Device, batch_size: int, rows: float, ranks: int = 1, scores: int = 0, itemsize: int = ITEMSIZE
) -> StepTime:
    """Return the predicted time of one step.

    Args:
        shape, device: the model and the accelerators.
        batch_size: number of sequences.
        rows: rows of H per sequence.
        ranks: number of accelerators.
        scores, itemsize: as in :func:`message_bytes`; weights and keys have as many bytes as an activation.
    """
    weights = shape.parameters(ranks)
    if not shape.tied:
        weights -= shape.width * (shape.vocab_size // ranks)  # a token reads one row of the embedding, and the whole LM head
    from_memory = itemsize * weights / device.bandwidth
    arithmetic = 2 * weights * batch_size / device.flops
    state = batch_size * rows * shape.row_bytes(ranks, itemsize) / device.bandwidth
    if ranks == 1:
        return StepTime(max(from_memory, arithmetic) + state, 0.0)
    sent = batch_size * sent_per_token(shape, ranks, scores, itemsize)
    return StepTime(max(from_memory, arithmetic) + state, shape.collectives(scores) * device.latency + sent / device.link)


def mean_rows(tokens: int, size: float = inf) -> float:
    """Return the mean number of rows of H over the steps 1 … ``tokens`` under an operator of ``size`` (inf: unbounded)."""
    if size >= tokens:
        return (tokens + 1) / 2
    return (size * (size + 1) / 2 + (tokens - size) * size) / tokens


def smallest_efficient_batch(shape: Shape, device: Device, rows: int, ranks: int) -> int:
    """Return the smallest power of two that fits as a batch size and at which communication takes 10 % of a step at most.

    It is 0 if there is none. The operator needs no scores of other ranks.
    """
    batch_size, most = 1, largest_batch(shape, device, rows, ranks)
    while batch_size <= most:
        found = step_time(shape, device, batch_size, rows, ranks)
        if found.communication <= EFFICIENT_SHARE * found.total:
            return batch_size
        batch_size *= 2
    return 0

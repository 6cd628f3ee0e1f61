"""The model of cost, compared with published numbers of parameters, with the paper, and with the cells of this library."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import converters
import msrnn
from msrnn import models
from msrnn.diagnostics.state_memory import token_bytes
from msrnn.distributed import cost, model_shape
from msrnn.models.llama import LLAMA_2_7B
from msrnn.models.registry import build_on_meta

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("cost_tables", ROOT / "docs/site/cost_tables.py")
cost_tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cost_tables)
CONFIGS = {
    "LLaMA-2-7B": LLAMA_2_7B,
    "LLaMA-2-70B": replace(LLAMA_2_7B, width=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_width=28672),
    "Mistral-7B": replace(LLAMA_2_7B, n_kv_heads=8, ffn_width=14336),
}
PUBLISHED = {"LLaMA-2-7B": 6_738_415_616, "LLaMA-2-70B": 68_976_648_192, "Mistral-7B": 7_241_732_096}
"""Parameters that the pages of the models on the Hugging Face hub state (safetensors metadata)."""


@pytest.mark.parametrize("shape", cost_tables.SHAPES, ids=lambda shape: shape.name)
def test_parameters_and_bytes_of_h(shape):
    cell = build_on_meta(CONFIGS[shape.name])
    assert shape.parameters() == PUBLISHED[shape.name] == sum(x.numel() for x in cell.parameters())
    assert shape.row_bytes() == token_bytes(cell.initial_state(1, "full"), itemsize=2)


@pytest.mark.parametrize("name", [name for name in models.__all__ if isinstance(getattr(models, name), models.Config)])
def test_sizes_of_the_presets(name):
    """Of every family, with tied and with separate embeddings; vectors such as biases and norms of heads are not counted."""
    config = getattr(models, name)
    actual = sum(x.numel() for x in build_on_meta(config).parameters())
    assert model_shape.Shape.of(config).parameters() == pytest.approx(actual, rel=1e-3)


@pytest.mark.parametrize(("ffn", "ffn_width"), [("swiglu", 48), ("gelu", 48), ("relu", 48), ("none", 0)])
def test_matrices_of_the_mlp_of_a_decoder(ffn, ffn_width):
    sizes = {"vocab_size": 50, "width": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "context_length": 40}
    config = models.DecoderConfig(**sizes, ffn=ffn, ffn_width=ffn_width)
    assert model_shape.Shape.of(config).parameters() == sum(x.numel() for x in build_on_meta(config).parameters())


def test_a_tied_embedding_is_held_and_read_once(hf_folder):
    """The bytes of the real folder: its file has the matrix once."""
    shape = model_shape.Shape.of(converters.config(hf_folder))
    with (hf_folder / "model.safetensors").open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    nbytes = (hf_folder / "model.safetensors").stat().st_size - header
    assert 4 * shape.parameters() == nbytes
    device = cost.Device("", memory=1e12, bandwidth=1e12, link=1e11, flops=1e18, latency=0.0)
    seconds = nbytes / 2 / 1e12  # 16 bits instead of 32; the LM head reads the whole matrix
    assert cost.step_time(shape, device, 1, 0).compute == pytest.approx(seconds)


@pytest.mark.parametrize("shape", cost_tables.SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_hold_the_model_and_h_together(shape, ranks):
    norms = (2 * shape.layers + 1) * shape.width
    assert ranks * (shape.parameters(ranks) - norms) == shape.parameters() - norms
    assert ranks * shape.row_bytes(ranks) == shape.row_bytes()


def test_more_ranks_than_heads_hold_copies_of_them():
    held = [model_shape.MISTRAL_7B.row_bytes(ranks) for ranks in (8, 16, 32)]
    assert held == [model_shape.MISTRAL_7B.row_bytes() // 8] * 3


def test_table_1_of_the_paper():
    for size, (gigabytes, batch_size, _) in cost_tables.PAPER.items():
        predicted = cost.largest_batch(model_shape.LLAMA_2_7B, cost.V100, size)
        assert predicted == pytest.approx(batch_size, rel=0.06, abs=1)
        assert size * model_shape.LLAMA_2_7B.row_bytes() / 1e9 == pytest.approx(gigabytes, rel=0.1)


@pytest.mark.parametrize("size", [1, 3, 7, 8, 20])
def test_mean_rows(size):
    assert cost.mean_rows(8, size) == pytest.approx(sum(min(t, size) for t in range(1, 9)) / 8)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_ring_sends_what_the_formula_says(ranks):
    """Simulate a ring: in each of 2 (R − 1) turns a rank sends one of R parts to the next; the result is the sum."""
    parts = [[float(10 * rank + i) for i in range(ranks)] for rank in range(ranks)]
    sums, sent = [sum(column) for column in zip(*parts, strict=True)], 0
    for turn in range(2 * (ranks - 1)):
        moving = [(rank, (rank - turn) % ranks, parts[rank][(rank - turn) % ranks]) for rank in range(ranks)]
        for rank, i, value in moving:
            receiver = parts[(rank + 1) % ranks]
            receiver[i] = value + receiver[i] if turn < ranks - 1 else value
        sent += 1
    assert parts == [sums] * ranks
    assert cost.sent_bytes(ranks * 100.0, ranks) == pytest.approx(100.0 * sent)


def test_weights_that_do_not_fit_leave_no_batch():
    assert cost.free_bytes(model_shape.LLAMA_2_70B, cost.A100) < 0
    assert (
        cost.largest_batch(model_shape.LLAMA_2_70B, cost.A100, 1)
        == cost.longest_context(model_shape.LLAMA_2_70B, cost.A100)
        == 0
    )


def test_a_step_takes_the_bytes_divided_by_the_bandwidth():
    device = cost.Device("", memory=1e12, bandwidth=1e12, link=1e11, flops=1e18, latency=0.0)
    found = cost.step_time(model_shape.LLAMA_2_7B, device, 4, 100, ranks=2)
    read = 2 * (model_shape.LLAMA_2_7B.parameters(2) - 4096 * 16000) + 4 * 100 * model_shape.LLAMA_2_7B.row_bytes(2)
    assert found.compute == pytest.approx(read / 1e12)
    assert found.communication == pytest.approx(4 * (65 * 4096 * 2 + 32000) / 1e11)  # 2 per layer and one, all-reduced


def test_numbers_of_32_bits_take_twice_as_long_as_those_of_16():
    device = cost.Device("", memory=1e12, bandwidth=1e12, link=1e11, flops=1e18, latency=0.0)
    half, single = (cost.step_time(model_shape.LLAMA_2_7B, device, 4, 0, ranks=2, itemsize=n) for n in (2, 4))
    assert (single.compute, single.communication) == pytest.approx((2 * half.compute, 2 * half.communication))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model_shape.LLAMA_2_7B.parameters(3), "heads is 32; expected a multiple of 3, the number of ranks"),
        (lambda: replace(model_shape.LLAMA_2_7B, ffn_width=100).parameters(8), "ffn_width is 100; expected a multiple of 8"),
        (
            lambda: replace(model_shape.LLAMA_2_7B, kv_heads=6).row_bytes(4),
            "kv_heads is 6; expected a multiple or a divisor of 4",
        ),
        (
            lambda: cost.step_time(model_shape.LLAMA_2_7B, cost.A100, 1, 512, ranks=0),
            "ranks is 0; expected an int of at least 1",
        ),
        (lambda: cost.longest_context(model_shape.LLAMA_2_7B, cost.A100, 0), "ranks is 0"),
        (lambda: cost.sent_per_token(model_shape.LLAMA_2_7B, 0), "ranks is 0"),
        (lambda: cost.contributed_per_token(model_shape.LLAMA_2_7B, 0), "ranks is 0"),
        (lambda: cost.smallest_efficient_batch(model_shape.LLAMA_2_7B, cost.A100, 0, 2), "rows is 0"),
    ],
)
def test_models_that_cannot_be_split_have_no_cost(call, message):
    """As msrnn.distribute refuses them; before, the sizes were rounded down."""
    with pytest.raises(msrnn.Error, match=message):
        call()


@pytest.mark.parametrize("name", cost_tables.tables())
def test_the_page_has_the_tables_of_the_command(name):
    assert cost_tables.tables()[name] in (ROOT / "docs/distributed.md").read_text()

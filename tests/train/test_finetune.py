"""Fine-tuning equals a plain loop over steps with AdamW, and a resumed run ends with the same bytes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import adapt
from support.interrupted_writes import interrupted_at_write
from support.refusals import refusing
from support.tiny_models import assert_close
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from support.training import words
from torch.nn.functional import cross_entropy

import converters
import msrnn
from msrnn.models.registry import build_random
from msrnn.train import FinetuneConfig, finetune
from msrnn.train.data import IGNORED, Streams
from msrnn.train.finetune import split_text

CONFIG = FinetuneConfig(
    reduction="tova:6",
    steps=6,
    batch_size=2,
    chunk_length=10,
    chunks_per_state=3,
    lr=0.02,
    warmup_steps=2,
    eval_every=2,
    val_tokens=40,
    weight_decay=0.1,
    max_grad_norm=0.5,
    r=3,
)
NAMES = ["adapter_config.json", "adapter_model.safetensors", "state-6.safetensors", "training.safetensors"]
TEXT = "".join(x for x in words() if x.isascii())


def encode(text):
    return tiny_tokenizer().encode(text).ids


def run(folder, config=CONFIG, cell=None, text=TEXT):
    return finetune(chat_cell() if cell is None else cell, text, encode, config, folder)


def test_the_adapters_are_those_of_a_plain_loop(tmp_path):
    done = run(tmp_path / "run", replace(CONFIG, steps=4))
    cell = msrnn.lora.add(chat_cell(), r=3, generator=torch.Generator().manual_seed(0))
    parameters = msrnn.lora.adapter_parameters(cell)
    batches, _ = split_text(TEXT, encode, CONFIG, cell.device)
    optimizer, state = torch.optim.AdamW(parameters.values(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1), None
    for index, lr in enumerate((0.01, 0.02, 0.02, 0.02 * (0.1 + 0.9 * 0.5))):  # warm-up, then a cosine over two steps
        tokens, targets, _ = batches[index]
        state = cell.initial_state(2, "tova:6") if index in (0, 3) else state.detach()
        losses = []
        for token, target in zip(tokens.T, targets.T, strict=True):
            logits, state = cell.step(token, state)
            losses.append(cross_entropy(logits, target))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        assert abs(done.losses[index] - loss.item()) < 1e-10
    for name, x in parameters.items():
        assert_close(done.parameters[name].detach(), x.detach(), 1e-9)
        assert x.abs().max() > 1e-3


def test_the_held_out_loss_falls_and_is_that_of_the_operator(tmp_path):
    done = run(tmp_path / "run", replace(CONFIG, steps=40, eval_every=40))
    assert [*done.validation] == [0, 40]
    assert done.validation[40] < done.validation[0] - 0.5
    cell = msrnn.lora.load_adapter(chat_cell(), tmp_path / "run")
    _, held_out = split_text(TEXT, encode, CONFIG, cell.device)
    for step, reader in {0: chat_cell(), 40: cell}.items():
        total, n, state = 0.0, 0, None
        for index in range(held_out.n_chunks):
            tokens, targets, reset = held_out[index]
            logits, state = reader(tokens, reader.initial_state(1, "tova:6") if reset else state)
            total += float(cross_entropy(logits[0], targets[0], reduction="sum").detach())
            n += targets.numel()
        assert abs(done.validation[step] - total / n) < 1e-9


def test_a_run_stopped_before_any_file_write_ends_with_the_same_bytes(tmp_path):
    config, stopped = replace(CONFIG, lora_dropout=0.2), 0
    run(tmp_path / "whole", config)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert sorted(whole) == NAMES
    for n in range(0, 11, 2):  # the folder, then state, training and adapter three times, then no stop
        try:
            with interrupted_at_write(n):
                run(tmp_path / str(n), config)
        except KeyboardInterrupt:
            stopped += 1
        again = run(tmp_path / str(n), config)
        assert {path.name: path.read_bytes() for path in (tmp_path / str(n)).iterdir()} == whole
        assert [*again.validation] == [0, 2, 4, 6]
    assert stopped == 5


def test_the_random_state_of_the_caller_is_unchanged(tmp_path):
    cell = chat_cell()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = run(tmp_path / "one", replace(CONFIG, steps=1), cell)
    assert torch.equal(torch.rand(3), expected)
    assert run(tmp_path / "other", replace(CONFIG, steps=1, seed=1)).losses != one.losses


def test_adapters_of_packed_weights_are_trained(tmp_path):
    tokenizer = tiny_tokenizer()
    plain = chat_cell(dtype=torch.float32)
    plain.save(tmp_path / "model")
    cell = converters.load(tmp_path / "model", weights="int8")
    done = run(tmp_path / "run", replace(CONFIG, steps=30, eval_every=30), cell)
    assert done.validation[30] < done.validation[0] - 0.3
    assert load_file(tmp_path / "run" / "adapter_model.safetensors").popitem()[1].dtype == torch.float32
    assert tokenizer.get_vocab_size() == cell.config.vocab_size


def test_a_state_begins_with_the_special_tokens():
    streams = Streams(torch.arange(100, 142), 2, 5, 2, None, (7, 8))
    tokens, targets, reset = streams[0]
    assert reset
    assert tokens.tolist() == [[7, 8, 100, 101, 102, 103, 104], [7, 8, 115, 116, 117, 118, 119]]
    assert targets.tolist() == [[IGNORED, 100, 101, 102, 103, 104, 105], [IGNORED, 115, 116, 117, 118, 119, 120]]
    tokens, targets, reset = streams[1]
    assert not reset
    assert tokens[0].tolist() == [105, 106, 107, 108, 109]
    assert targets[0].tolist() == [106, 107, 108, 109, 110]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0; expected an int from 1 to"),
        ({"lr": 2}, "lr is 2; expected a number above 0 and at most 1"),
        ({"weight_decay": False}, "weight_decay is False; expected a number of at least 0 and at most 1"),
        ({"weight_decay": -1}, "weight_decay is -1; expected a number of at least 0"),
        (
            {"chunk_length": 5000},
            "held out, its last 10%; expected at least 15000 and 10000 (batch_size 2, chunk_length 5000): a text",
        ),
        ({"reduction": "tofa:3"}, "no operator is called 'tofa'"),
        ({"reduction": "tova-head:3/4/5"}, "3 sizes for a layer of 2 key/value heads"),
        ({"target_modules": ("x",)}, "target_modules has 'x'; expected linear maps of this cell"),
        ({"target_modules": {"q"}}, "target_modules is {'q'}; expected a list of names, or 'all-linear'"),
        ({"target_modules": (1,)}, "target_modules is (1,); expected a list of names, or 'all-linear'"),
        ({"r": 0}, "r is 0; expected an int from 1"),
    ],
)
def test_refusals_leave_nothing(fields, message, tmp_path):
    cell = chat_cell()
    with refusing(message):
        run(tmp_path / "run", replace(CONFIG, **fields), cell)
    assert not (tmp_path / "run").exists()
    assert not cell.adapters


@pytest.mark.parametrize("bos", [[], [999]])
def test_the_tokenizer_of_another_model_is_refused(bos, tmp_path):
    """Some ids are outside of the vocabulary; before, the first step raised an IndexError, and the folder remained."""
    cell = chat_cell()
    with refusing("is outside the vocabulary of 110"):
        finetune(cell, "sea " * 500, lambda text: bos + [1 if bos else ord(x) for x in text], CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not cell.adapters


def test_another_run_or_base_is_refused(tmp_path):
    run(tmp_path / "run", replace(CONFIG, steps=1))
    for config, cell, text, message in (
        (replace(CONFIG, steps=2), None, TEXT, "contains a run with steps 1; this one has 2"),
        (replace(CONFIG, steps=1), chat_cell(seed=1), TEXT, "contains a run with base '"),
        (replace(CONFIG, steps=1), None, TEXT[1:], "contains a run with text '"),
        (replace(CONFIG, steps=1), adapt(chat_cell()), TEXT, "contains a run with base '"),
    ):
        with refusing(message):
            run(tmp_path / "run", config, cell, text)
    with refusing("the cell has adapters already"):
        run(tmp_path / "new", cell=adapt(chat_cell()))
    with refusing("the cell is a phi3"):
        run(tmp_path / "new", cell=build_random(replace(chat_cell().config, family="phi3")).requires_grad_(False))
    assert not (tmp_path / "new").exists()

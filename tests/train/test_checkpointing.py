"""Resumed runs end with the same bits, and no random number depends on the caller."""

import torch
from support.interrupted_writes import interrupted_at_write
from support.training import DECODER, folder_contents, train_config, words

import msrnn
from msrnn.train import train

NAMES = ["config.json", "model.safetensors", "state-12.safetensors", "tokenizer.json", "training.safetensors"]


def test_a_run_stopped_before_any_file_write_ends_with_the_same_bytes(tmp_path):
    """Compares every byte of every file: carried state, row statistics, optimizer, random state."""
    text, wholes, stopped = words(), {}, 0
    settings = [
        train_config(reduction="tova:6"),
        train_config(reduction="h2o:6"),
        train_config(model=DECODER, reduction="full"),
    ]
    for kind in settings:
        train(kind, text, tmp_path / kind.reduction)
        wholes[kind.reduction] = folder_contents(tmp_path / kind.reduction)
        assert sorted(wholes[kind.reduction]) == NAMES
    for n in range(11):  # the folder, then state, training and model three times, then no stop
        kind = settings[n % 3]
        try:
            with interrupted_at_write(n):
                train(kind, text, tmp_path / str(n))
        except KeyboardInterrupt:
            stopped += 1
        train(kind, text, tmp_path / str(n))
        assert folder_contents(tmp_path / str(n)) == wholes[kind.reduction]
    assert stopped == 10


def test_a_parameter_without_a_gradient_is_restored(tmp_path):
    """With one chunk per state the write tokens are never used, so they have no optimizer state."""
    settings = train_config(model={**DECODER, "memory_tokens": 2, "recurrent": True}, chunks_per_state=1)
    done = train(settings, words(), tmp_path)
    assert train(settings, words(), tmp_path).losses == done.losses


def test_the_carried_state_changes_the_losses(tmp_path):
    """Otherwise the tests of resuming would not detect a lost state."""
    whole = train(train_config(), words(), tmp_path / "carried")
    alone = train(train_config(chunks_per_state=1), words(), tmp_path / "alone")
    assert whole.losses[0] == alone.losses[0]
    assert whole.losses[1] != alone.losses[1]


def test_the_random_state_of_the_caller_is_unchanged(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = train(train_config(), words(), tmp_path / "one")
    assert torch.equal(torch.rand(3), expected)
    other = train(train_config(seed=1), words(), tmp_path / "other")
    assert one.losses[0] != other.losses[0]


def test_parameters_depend_on_the_seed_of_the_run_and_not_on_the_random_state_of_the_caller(tmp_path):
    losses = []
    for state in (1, 2):
        torch.manual_seed(state)
        losses.append(train(train_config(model=DECODER), words(), tmp_path / str(state)).losses)
    assert losses[0] == losses[1]


def test_the_last_step_is_validated_and_saved(tmp_path):
    done = train(train_config(steps=10), words(), tmp_path)
    assert [*done.validation] == [4, 8, 10]
    assert (tmp_path / "state-10.safetensors").is_file()
    assert msrnn.load(tmp_path).embed.weight.equal(done.cell.embed.weight)


def test_a_finished_run_is_returned_unchanged(tmp_path):
    done = train(train_config(), words(), tmp_path)
    before = folder_contents(tmp_path)
    again = train(train_config(), words(), tmp_path)
    assert (again.losses, again.validation) == (done.losses, done.validation)
    assert [*done.validation] == [4, 8, 12]
    assert folder_contents(tmp_path) == before


@torch.no_grad()
def test_training_works_inside_no_grad(tmp_path):
    assert len(train(train_config(steps=1), words(), tmp_path / "run").losses) == 1

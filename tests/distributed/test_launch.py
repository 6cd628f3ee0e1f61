"""The launch that the environment of torchrun describes."""

import pytest

import msrnn
from msrnn.distributed.launch import Launch

ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_no_variables_are_one_process():
    assert Launch.of({}) == Launch.of({"RANK": "0", "WORLD_SIZE": "1"}) == Launch(0, 1, 0, 1)


def test_the_variables_of_torchrun():
    machine = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Launch.of({"RANK": "5", "WORLD_SIZE": "6", **machine, **ADDRESS}) == Launch(5, 6, 1, 2)
    assert Launch.of({"RANK": "5", "WORLD_SIZE": "6", **ADDRESS}) == Launch(5, 6, 5, 6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "2"}, "RANK 2 of 2"),
        ({"RANK": "-1"}, "RANK '-1'; expected a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE 'two'; expected a number"),
        ({"MASTER_PORT": None}, "WORLD_SIZE 2 but no MASTER_PORT"),
    ],
)
def test_other_values_are_refused(changed, message):
    found = {"RANK": "1", "WORLD_SIZE": "2", **ADDRESS, **changed}
    with pytest.raises(msrnn.Error, match=message):
        Launch.of({name: value for name, value in found.items() if value is not None})


def test_each_rank_has_its_own_gpu():
    assert [Launch(rank, 4, rank % 2, 2).device("cuda") for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Launch().device("cuda:1") == "cuda:1"
    assert Launch(1, 2, 1, 2).device("cpu") == "cpu"
    with pytest.raises(msrnn.Error, match="--device is 'cuda:1' for 2 ranks"):
        Launch(1, 2, 1, 2).device("cuda:1")

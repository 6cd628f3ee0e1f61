"""SmolLM2-135M over three ranks, each with three query heads and one key/value head: logits, positions and memory."""

import resource

import pytest
import torch
import torch.distributed as dist
from support.rank_groups import run_ranks

import converters

TEXT = "The old lighthouse keeper counted the ships that passed the bay, and wrote their names into a book. " * 5
OPERATORS = ("tova:32", "h2o-layer:32")
MB = 2**20


def read_with_three_ranks(rank, folder, model):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cell = converters.load(model, group=dist.group.WORLD)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    share = sum(x.nbytes for x in cell.state_dict().values())
    found = {}
    for spec in OPERATORS:
        logits, state = cell(ids(model), cell.initial_state(1, spec))
        found[spec] = logits, [H.sorted_by_position().positions for H in state]
    return growth, share, found if rank == 0 else {spec: (None, positions) for spec, (_, positions) in found.items()}


def ids(model):
    return torch.tensor([converters.tokenizer(model).encode(TEXT).ids])


@pytest.fixture(scope="module")
def found(hf_folder, tmp_path_factory):
    return run_ranks(3, read_with_three_ranks, tmp_path_factory.mktemp("ranks"), hf_folder)


def test_logits_and_positions(hf_folder, found, figure):
    cell = converters.load(hf_folder)
    for spec in OPERATORS:
        expected, state = cell(ids(hf_folder), cell.initial_state(1, spec))
        logits = found[0][2][spec][0]
        difference = (logits - expected).abs()
        assert difference.mean() < 1e-4
        assert logits.argmax(-1).equal(expected.argmax(-1))
        other = 0
        for layer, H in enumerate(state):
            positions = torch.cat([of_rank[2][spec][1][layer] for of_rank in found], dim=1)
            other += int((positions != H.sorted_by_position().positions).any(-1).sum())
        gaps = f"{difference.max():.1e} largest, {difference.mean():.1e} mean difference of logits"
        figure(f"{gaps}, three ranks and one process: SmolLM2-135M, {spec}; {other} heads off")
        assert other == 0


def test_a_rank_loads_its_slices_only(found, figure):
    for rank, (growth, share, _) in enumerate(found):
        figure(f"{growth / MB:.0f} MB of memory to load {share / MB:.0f} MB of slices, rank {rank} of 3: SmolLM2-135M")
        assert growth < 1.2 * share + 64 * MB

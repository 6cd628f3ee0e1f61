"""Every family on two ranks, and key/value heads that several ranks share."""

from dataclasses import replace
from random import Random

import pytest
from support.rank_groups import run_ranks
from support.split_cells import HeadIndex, LayerMaximum, compare, refusal
from support.tiny_families import CONFIGS, tiny_family

import msrnn
from msrnn.models import Decoder, DecoderConfig
from msrnn.models.llama import Llama

SHARED_HEADS = {"qwen2": "h2o:6", "qwen3": "tova-head:6", "olmo2": "h2o-layer:6", "granite_swa": "tova:6"}
SHARED_HEADS |= {"llama": LayerMaximum(6)}
"""Families with an operator, for one key/value head that two ranks hold. The cell of Gemma 3 has one in any case."""
N_RANDOM = 8
RANDOM_OPERATORS = ("tova:6", "h2o-layer:6", "h2o:6", "random:6", "caote:6", "knorm:6", LayerMaximum(6), HeadIndex(6))


def compare_families(rank, folder):
    found = {}
    for family in CONFIGS:
        whole = tiny_family(family, vocab_size=51)  # ids that do not divide by two
        split = msrnn.distribute(whole)
        assert type(split) is type(whole)
        assert split.config == whole.config
        assert split.fingerprint() == whole.fingerprint()
        found[family, "published"] = compare(whole, split, None)
        found[family, "all-layers:tova:6"] = compare(whole, split, "all-layers:tova:6")
    for family, operator in SHARED_HEADS.items():
        whole = tiny_family(family, n_kv_heads=1)
        split = msrnn.distribute(whole)
        found[family, "shared head"] = compare(whole, split, operator)
    for seed in range(N_RANDOM):
        whole, reduction = random_case(seed)
        found["random", seed] = compare(whole, msrnn.distribute(whole), reduction)
    found["refusals"] = [refusal(lambda cell=cell: msrnn.distribute(cell)) for cell in cells_that_do_not_fit()]
    return found


def random_case(seed):
    """Return a cell of a random family with random sizes, and a random operator."""
    rng = Random(seed)
    K = rng.choice((1, 2, 4))
    sizes = {"n_kv_heads": K, "n_heads": rng.choice([n for n in (2, 4, 8) if n % K == 0]), "head_dim": rng.choice((4, 8))}
    sizes |= {
        "vocab_size": rng.randint(30, 60),
        "ffn_width": 2 * rng.randint(1, 20),
        "width": rng.randint(5, 30),
        "n_layers": 1,
    }
    sizes |= {"layer_windows": (), "layer_ropes": (), "tied": rng.random() < 0.5}
    return tiny_family(rng.choice(list(CONFIGS)), seed, **sizes), rng.choice(RANDOM_OPERATORS)


def cells_that_do_not_fit():
    config = CONFIGS["llama"]
    for fields in ({"n_heads": 3, "n_kv_heads": 3}, {"n_heads": 6, "n_kv_heads": 3}, {"ffn_width": 33}, {"vocab_size": 1}):
        yield Llama(replace(config, **fields))
    sizes = {"vocab_size": 9, "width": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "ffn_width": 8}
    yield Decoder(DecoderConfig(**sizes, context_length=9))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(2, compare_families, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("family", "case"),
    [*(("random", seed) for seed in range(N_RANDOM))]
    + [(family, case) for family in CONFIGS for case in ("published", "all-layers:tova:6")]
    + [(family, "shared head") for family in SHARED_HEADS],
)
def test_two_ranks_compute_what_one_process_computes(found, family, case):
    for of_rank in found:
        gap, steps, same_rows = of_rank[family, case]
        assert max(gap, steps) < 1e-9
        assert same_rows


def test_models_that_do_not_fit_the_ranks_are_refused_on_every_rank(found):
    for of_rank in found:
        assert of_rank["refusals"] == [
            "config: n_heads is 3; expected a multiple of 2, the number of ranks",
            "3 key/value heads on 2 ranks; expected a multiple or a divisor of 2 heads",
            "config: ffn_width is 33; expected a multiple of 2, the number of ranks",
            "config: vocab_size is 1; expected at least 2, the number of ranks",
            "config: family is decoder, which cannot be split over 2 ranks; expected one process",
        ]

"""Sizes and settings that an operator refuses, and the smallest that it accepts."""

import pytest

import msrnn
from msrnn import (
    A2SF,
    CAOTE,
    H2O,
    RKV,
    TOVA,
    VATP,
    CaM,
    Full,
    Keyformer,
    Knorm,
    LagKV,
    LastQueries,
    MorphKV,
    Random,
    Scissorhands,
    Sinks,
    VaSE,
    Window,
)


@pytest.mark.parametrize(
    ("build", "thing"),
    [
        (lambda: TOVA(0), "TOVA: size is 0"),
        (lambda: TOVA(-1), "TOVA: size is -1"),
        (lambda: TOVA(2.0), "TOVA: size is 2.0"),
        (lambda: TOVA("4"), "TOVA: size is '4'"),
        (lambda: TOVA(True), "TOVA: size is True"),
        (lambda: TOVA(None), "TOVA: size is None"),
        (lambda: TOVA((4, 0)), "TOVA: size is 0"),
        (lambda: H2O(0), "H2O: size is 0"),
        (lambda: H2O(4, recent=5), "H2O: recent is 5"),
        (lambda: H2O((8, 4), recent=5), "H2O: recent is 5"),
        (lambda: H2O(4, recent=-1), "H2O: recent is -1"),
        (lambda: Sinks(4), "Sinks: sinks is 4"),
        (lambda: Sinks(4, sinks=4), "Sinks: sinks is 4"),
        (lambda: Sinks((9, 4), sinks=4), "Sinks: sinks is 4"),
        (lambda: Sinks(4, sinks=9), "Sinks: sinks is 9"),
        (lambda: Sinks(0, sinks=0), "Sinks: size is 0"),
        (lambda: Window(-1), "Window: size is -1"),
        (lambda: Full(5), "Full: size is 5"),
        (lambda: Random(4, seed=-1), "Random: seed is -1"),
        (lambda: Random(4, layer="a"), "Random: layer is 'a'"),
        (lambda: LastQueries(4), "LastQueries: window is 32; expected an int from 1 to 4"),
        (lambda: MorphKV(64, max_fusion=1), "MorphKV: max_fusion is 1"),
        (lambda: MorphKV((64, 8)), "MorphKV: window is 32"),
        (lambda: Scissorhands(4), "Scissorhands: recent is 10"),
        (lambda: Scissorhands(64, history=0), "Scissorhands: history is 0"),
        (lambda: Keyformer(4, recent=5), "Keyformer: recent is 5"),
        (lambda: Keyformer(4, steps=0), "Keyformer: steps is 0"),
        (lambda: CaM(4), "CaM: sinks is 4"),
        (lambda: CaM(8, merge_window=0), "CaM: merge_window is 0"),
        (lambda: Knorm(0), "Knorm: size is 0"),
        (lambda: CAOTE(4, per_head=1), "CAOTE: per_head is 1"),
        (lambda: VATP(4, recent=5), "VATP: recent is 5"),
        (lambda: VATP(4, sinks=-1), "VATP: sinks is -1"),
        (lambda: VaSE(8, window=6, large=3), "VaSE: window 6 and 4 rows of large or sinks exceed size 8"),
        (lambda: VaSE(8, window=2, large=0), "VaSE: large is 0; expected an int from 1 to 8"),
        (lambda: A2SF(4, forgetting=1.5), "A2SF: forgetting is 1.5"),
        (lambda: RKV(8, importance="a"), "RKV: importance is 'a'"),
        (lambda: RKV(8, threshold=2), "RKV: threshold is 2"),
        (lambda: LagKV(8), "LagKV: size is 8"),
        (lambda: LagKV(20, lag=9), "LagKV: lag is 9; expected an int from 2 to 8"),
    ],
)
def test_invalid_settings_are_refused(build, thing):
    with pytest.raises(msrnn.Error, match=thing):
        build()


def test_smallest_valid_sizes():
    assert Window(0).size == 0
    assert H2O(4, recent=4).recent == 4
    assert H2O(1, recent=0).recent == 0
    assert Sinks(5).sinks == 4
    assert TOVA([3, 2]) == TOVA((3, 2))
    assert hash(TOVA([3, 2])) == hash(TOVA((3, 2)))

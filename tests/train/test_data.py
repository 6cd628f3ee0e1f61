"""Streams are contiguous; the two tokenizers agree with the package tokenizers."""

import json
import random
from dataclasses import replace

import pytest
import tokenizers
import torch
from support.training import train_config, words

import msrnn
from msrnn.train.data import Streams, TrainData
from msrnn.train.tokenizer import TrainTokenizer, build_tokenizer


def test_streams_are_contiguous_and_cover_each_token_once_per_epoch():
    streams = Streams(torch.arange(100), batch_size=3, chunk_length=7, chunks_per_state=2)
    assert streams.n_chunks == 4
    for row in range(3):
        read = torch.cat([streams[index].tokens[row] for index in range(4)])
        assert read.tolist() == [*range(28 * row, 28 * row + 28)]
    assert all(torch.equal(streams[i].targets, streams[i].tokens + 1) for i in range(4))
    assert [streams[i].reset_state for i in range(8)] == [True, False, True, False] * 2


def test_state_is_reset_at_the_start_of_an_epoch():
    streams = Streams(torch.arange(100), 3, 7, chunks_per_state=3)
    assert [streams[i].reset_state for i in range(8)] == [True, False, False, True] * 2


def test_epochs_start_at_random_offsets_that_depend_on_the_seed():
    firsts = {}
    for seed in (0, 1):
        streams = Streams(torch.arange(34), batch_size=3, chunk_length=7, chunks_per_state=1, seed=seed)
        firsts[seed] = [int(streams[epoch].tokens[0, 0]) for epoch in range(60)]
        assert set(firsts[seed]) == set(range(7))
        assert max(int(streams[epoch].targets.max()) for epoch in range(60)) <= 33
    assert firsts[0] != firsts[1]


def test_minimum_length_of_a_text():
    settings = train_config(batch_size=3, chunk_length=10, val_fraction=0.5)
    data = TrainData.of("a" * 80, settings)
    assert (data.train.n_chunks, data.val.batch_size, data.val.n_chunks) == (1, 3, 1)
    assert TrainData.of("a" * 40 + "b" * 40, settings).val.ids.unique().tolist() == [98]
    with pytest.raises(
        msrnn.Error, match="the text has 39 tokens for training and 39 held out, its last 50%; expected at least 40 "
    ):
        TrainData.of("a" * 78, settings)
    for fraction, shown in ((0.5, "50"), (0.001, "0.1"), (1e-320, r"1e-318")):
        with pytest.raises(msrnn.Error, match=f"the text has 0 tokens for training and 0 held out, its last {shown}%; "):
            TrainData.of("", replace(settings, val_fraction=fraction))
    with pytest.raises(msrnn.Error, match="not valid Unicode"):
        TrainData.of("a\udc80" * 400, settings)


@pytest.mark.parametrize(("fraction", "length"), [(0.1, 200), (0.5, 80), (0.4, 67)])
def test_the_message_for_a_short_text_has_the_length_that_is_enough(fraction, length):
    settings = train_config(batch_size=3, chunk_length=10, val_fraction=fraction)
    with pytest.raises(msrnn.Error, match=f"at least 40 and 20 .*: a text of about {length} tokens, or a smaller chunk_length"):
        TrainData.of("a" * (length - 2), settings)
    assert TrainData.of("a" * length, settings).val.n_chunks


def test_byte_tokenizer_agrees_with_tokenizers():
    tokenizer = build_tokenizer("bytes", "")
    reference = tokenizers.Tokenizer.from_buffer(tokenizer.json)
    rng = random.Random(0)
    texts = [
        words(),
        "\x00\x01 \t\n\r a  b'll 12",
        *("".join(chr(rng.randrange(32, 0xD7FF)) for _ in range(200)) for _ in "ab"),
    ]
    for text in texts:
        assert tokenizer.encode(text).tolist() == list(text.encode()) == reference.encode(text).ids
        assert reference.decode(reference.encode(text).ids) == text
    assert tokenizer.n_bytes.tolist() == [1] * 256


def test_trained_bpe_agrees_with_tokenizers():
    tokenizer = build_tokenizer("bpe:300", words())
    reference = tokenizers.Tokenizer.from_buffer(tokenizer.json)
    for text in (words(50, seed=1), "Ganz anderes – 漢字\n"):
        ids = tokenizer.encode(text)
        assert ids.tolist() == reference.encode(text).ids
        assert reference.decode(ids.tolist()) == text
        assert int(tokenizer.n_bytes[ids].sum()) == len(text.encode())
    assert len(tokenizer.encode(words())) < len(words().encode()) / 2
    assert 256 < len(tokenizer.n_bytes) <= 300
    assert TrainTokenizer.read(tokenizer.json).n_bytes.equal(tokenizer.n_bytes)


def test_validation_starts_at_the_first_token_of_every_epoch():
    data = TrainData.of(
        "a" * 60 + "".join(map(chr, range(40, 100))), train_config(batch_size=2, chunk_length=10, val_fraction=0.5)
    )
    assert data.val.n_chunks == 2
    for epoch in range(6):
        assert data.val[2 * epoch].tokens[:, 0].tolist() == [40, 60]


def test_a_bpe_without_merges_has_its_own_order_of_ids():
    tokenizer = build_tokenizer("bpe:257", "")
    assert len(tokenizer.n_bytes) == 256
    assert tokenizer.encode("a€").tolist() == tokenizers.Tokenizer.from_buffer(tokenizer.json).encode("a€").ids
    assert tokenizer.encode("a€").tolist() != list("a€".encode())


def test_bpe_is_not_trained_on_the_validation_split():
    settings = train_config(tokenizer="bpe:280", val_fraction=0.5)
    data = TrainData.of("ab" * 1000 + "xyz " * 500, settings)
    names = json.loads(data.tokenizer.json)["model"]["vocab"]
    assert any("ab" in name for name in names)
    assert not any("xy" in name for name in names)

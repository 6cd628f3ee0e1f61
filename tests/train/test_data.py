"""Streams are read on from chunk to chunk; tokens are bytes, or what the tokenizers package makes of them."""

import json
import random

import pytest
import tokenizers
import torch
from support.training import recipe, words

import msrnn
from msrnn.train.data import Data, Streams
from msrnn.train.tokenizer import Vocabulary, vocabulary


def test_streams_are_contiguous_and_meet_every_token_once_an_epoch():
    streams = Streams(torch.arange(100), batch=3, chunk=7, carry=2)
    assert streams.n_chunks == 4
    for row in range(3):
        read = torch.cat([streams[index].tokens[row] for index in range(4)])
        assert read.tolist() == [*range(28 * row, 28 * row + 28)]
    assert all(torch.equal(streams[i].targets, streams[i].tokens + 1) for i in range(4))
    assert [streams[i].fresh for i in range(8)] == [True, False, True, False] * 2


def test_an_epoch_ends_a_stream_wherever_h_stands():
    assert [Streams(torch.arange(100), 3, 7, carry=3)[i].fresh for i in range(8)] == [True, False, False, True] * 2


def test_epochs_begin_at_places_drawn_from_the_seed_inside_the_text():
    firsts = {}
    for seed in (0, 1):
        streams = Streams(torch.arange(34), batch=3, chunk=7, carry=1, seed=seed)
        firsts[seed] = [int(streams[epoch].tokens[0, 0]) for epoch in range(60)]
        assert set(firsts[seed]) == set(range(7))
        assert max(int(streams[epoch].targets.max()) for epoch in range(60)) <= 33
    assert firsts[0] != firsts[1]


def test_as_little_text_as_is_accepted():
    settings = recipe(batch=3, chunk=10, held_out=0.5)
    data = Data.of("a" * 80, settings)
    assert (data.learnt.n_chunks, data.held.batch, data.held.n_chunks) == (1, 3, 1)
    assert Data.of("a" * 40 + "b" * 40, settings).held.ids.unique().tolist() == [98]
    with pytest.raises(msrnn.Error, match=r"the text has 39 tokens and 39 at its end; expected at least 40 to learn from"):
        Data.of("a" * 78, settings)
    with pytest.raises(msrnn.Error, match=r"expected at least 40 .* and 20 held out"):
        Data.of("a" * 190, recipe(batch=3, chunk=10, held_out=0.1))
    with pytest.raises(msrnn.Error, match="the text has 0 tokens and 0 at its end"):
        Data.of("", settings)
    with pytest.raises(msrnn.Error, match="not valid Unicode"):
        Data.of("a\udc80" * 400, settings)


def test_bytes_are_what_tokenizers_reads_from_the_file():
    made = vocabulary("bytes", "")
    theirs = tokenizers.Tokenizer.from_buffer(made.json)
    draw = random.Random(0)
    texts = [
        words(),
        "\x00\x01 \t\n\r a  b'll 12",
        *("".join(chr(draw.randrange(32, 0xD7FF)) for _ in range(200)) for _ in "ab"),
    ]
    for text in texts:
        assert made.encode(text).tolist() == list(text.encode()) == theirs.encode(text).ids
        assert theirs.decode(theirs.encode(text).ids) == text
    assert made.n_bytes.tolist() == [1] * 256


def test_trained_bpe_is_what_tokenizers_reads_from_the_file():
    made = vocabulary("bpe:300", words())
    theirs = tokenizers.Tokenizer.from_buffer(made.json)
    for text in (words(50, seed=1), "Ganz anderes – 漢字\n"):
        ids = made.encode(text)
        assert ids.tolist() == theirs.encode(text).ids
        assert theirs.decode(ids.tolist()) == text
        assert int(made.n_bytes[ids].sum()) == len(text.encode())
    assert len(made.encode(words())) < len(words().encode()) / 2
    assert 256 < len(made.n_bytes) <= 300
    assert Vocabulary.read(made.json).n_bytes.equal(made.n_bytes)


def test_bpe_is_not_trained_on_what_is_held_out():
    settings = recipe(tokenizer="bpe:280", held_out=0.5)
    data = Data.of("ab" * 1000 + "xyz " * 500, settings)
    names = json.loads(data.vocabulary.json)["model"]["vocab"]
    assert any("ab" in name for name in names)
    assert not any("xy" in name for name in names)

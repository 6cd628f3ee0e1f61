"""The streaming detokenizer against decoding of the whole text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import examples
from support.tiny_tokenizer import PIECES, sentencepiece_tokenizer, tiny_tokenizer

import converters
from msrnn.text.detokenizer import StreamingDetokenizer

SENTENCEPIECE, BYTE_LEVEL = sentencepiece_tokenizer(), tiny_tokenizer()


def streamed(tokenizer, ids, context=()):
    detokenize = StreamingDetokenizer(tokenizer, context)
    return "".join(map(detokenize, ids)) + detokenize.flush()


def ids_of(tokenizer, pieces):
    return [tokenizer.token_to_id(piece) for piece in pieces]


@pytest.fixture(scope="module")
def byte_level(gguf_path):
    """The tokenizer of SmolLM2, and ids of whole and partial characters."""
    tokenizer = converters.tokenizer(gguf_path)
    partial = [i for i in range(tokenizer.get_vocab_size()) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([i])]
    return tokenizer, [*partial[:: len(partial) // 40], *tokenizer.encode("a the\n€ 🙂é").ids, 0, 1]


@given(st.data())
@examples(400)
def test_sentencepiece_text_is_that_of_decode(data):
    """Also after a context: the text of context and ids without the text of the context."""
    alphabet = st.sampled_from(ids_of(SENTENCEPIECE, PIECES))
    check(SENTENCEPIECE, data.draw(st.lists(alphabet, max_size=3)), data.draw(st.lists(alphabet, max_size=7)))


def test_byte_level_text_is_that_of_decode(byte_level):
    tokenizer, alphabet = byte_level

    @given(st.lists(st.sampled_from(alphabet), max_size=3), st.lists(st.sampled_from(alphabet), max_size=7))
    @examples(400)
    def run(context, ids):
        check(tokenizer, context, ids)

    run()


def check(tokenizer, context, ids):
    before, whole = tokenizer.decode(context), tokenizer.decode([*context, *ids])
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    if whole.startswith(before):  # a context that ends within a character can be decoded differently with a further token
        assert streamed(tokenizer, ids, context) == whole[len(before) :]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["▁the", "<0x0A>", "<0xE2>", "▁sea", "▁the"], "the\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} sea the"),
        (["▁the", "<0x0A>", "▁sea"], "the\n sea"),
        (["▁the", "<0xE2>", "<0x82>", "<0xAC>", "▁sea"], "the€ sea"),
    ],
)
def test_no_text_is_lost_after_a_stray_byte(pieces, text):
    assert streamed(SENTENCEPIECE, ids_of(SENTENCEPIECE, pieces)) == text


def test_the_first_space_of_a_continuation_is_kept():
    context, ids = ids_of(SENTENCEPIECE, ["▁line"]), ids_of(SENTENCEPIECE, ["▁for", "▁x"])
    assert streamed(SENTENCEPIECE, ids, context) == " for x"
    assert streamed(SENTENCEPIECE, ids) == "for x"
    context, ids = ids_of(SENTENCEPIECE, ["▁the", "a"]), ids_of(SENTENCEPIECE, ["▁▁▁▁", "▁return"])
    assert streamed(SENTENCEPIECE, ids, context) == "     return"


def test_a_complete_character_is_returned_at_once():
    detokenize = StreamingDetokenizer(BYTE_LEVEL)
    assert [detokenize(i) for i in BYTE_LEVEL.encode("the end", add_special_tokens=False).ids] == ["the", " ", "e", "n", "d"]


def test_ids_that_the_tokenizer_does_not_have_are_omitted():
    a = BYTE_LEVEL.token_to_id("a")
    assert streamed(BYTE_LEVEL, [a, 10**6, a]) == "aa"


def test_a_long_run_of_invalid_bytes_takes_linear_time(byte_level):
    tokenizer, alphabet = byte_level
    start = time.perf_counter()
    stray = next(i for i in alphabet if tokenizer.decode([i]) == tokenizer.decode([i, i])[:1] == "\N{REPLACEMENT CHARACTER}")
    assert streamed(tokenizer, [stray] * 3000) == tokenizer.decode([stray] * 3000)
    assert time.perf_counter() - start < 30


def test_streamed_chunks_join_to_the_text(gguf_path):
    tokenizer = converters.tokenizer(gguf_path)
    text = "Größe 大きい 🙂 — and so on.\n\tEnd"
    assert streamed(tokenizer, tokenizer.encode(text).ids) == text

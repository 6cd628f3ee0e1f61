"""Text up to a stop string, against a search in the decoded text and against transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import examples
from support.tiny_tokenizer import PIECES, sentencepiece_tokenizer, tiny_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from msrnn.text.stop_strings import StreamedText

SENTENCEPIECE, BYTE_LEVEL = sentencepiece_tokenizer(), tiny_tokenizer()
ALPHABETS = {
    "SentencePiece": (SENTENCEPIECE, [SENTENCEPIECE.token_to_id(p) for p in PIECES if p not in ("<s>", "<0xFF>")], "at l\n€"),
    "byte level": (BYTE_LEVEL, BYTE_LEVEL.encode("the in a \nab er", add_special_tokens=False).ids, "ather \nb"),
}


def read(tokenizer, stop, ids, context=(), **settings):
    """Return the text that is shown, and the number of tokens up to the stop, None without a stop."""
    streamed, text = StreamedText(tokenizer, stop, context, **settings), ""
    for n, token in enumerate(ids, 1):
        text += streamed(token)
        assert not any(s in text for s in stop) or context
        if streamed.stopped:
            return text + streamed.flush(), n
    return text + streamed.flush(), None


@given(st.data())
@examples(300)
def test_the_first_stop_string_ends_the_text(data):
    tokenizer, alphabet, letters = ALPHABETS[data.draw(st.sampled_from([*ALPHABETS]))]
    ids = data.draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=9))
    context = data.draw(st.lists(st.sampled_from(alphabet), max_size=4))
    stop = data.draw(st.lists(st.text(letters, min_size=1, max_size=4), min_size=1, max_size=3))
    before = tokenizer.decode(context)
    text = tokenizer.decode([*context, *ids])
    if not all(tokenizer.decode([*context, *ids[:n]]).startswith(before) for n in range(len(ids) + 1)):
        return  # the context ends within a character
    expected = text[len(before) :], None
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode([*context, *ids[:n]])
        if found := [at for s in stop if (at := text.find(s, max(0, len(before) - len(s) + 1))) >= 0]:
            expected = text[len(before) : max(min(found), len(before))], n
            break
    assert read(tokenizer, stop, ids, context) == expected


def test_the_tokens_kept_are_those_of_transformers():
    reference = PreTrainedTokenizerFast(tokenizer_object=BYTE_LEVEL, bos_token="<s>", eos_token="</s>")
    alphabet = torch.tensor([*BYTE_LEVEL.encode("the in a \nab er on").ids, 2])
    hits = 0
    for seed in range(60):
        ids = alphabet[torch.randint(len(alphabet), (12,), generator=torch.Generator().manual_seed(seed))]
        stop = [BYTE_LEVEL.decode(ids[6:8].tolist(), skip_special_tokens=False)[-3:], "ther"]
        criteria = StopStringCriteria(tokenizer=reference, stop_strings=stop)
        done = [n for n in range(3, 13) if criteria(ids[None, :n], None).item()]
        _, n = read(BYTE_LEVEL, stop, ids[2:].tolist(), ids[:2].tolist())
        assert (n and n + 2) == (done[0] if done else None), (seed, stop)
        hits += n is not None
    assert hits > 40


def test_special_tokens_are_searched_and_not_shown():
    ids = BYTE_LEVEL.encode("the end<|im_end|>in", add_special_tokens=False).ids
    assert read(BYTE_LEVEL, ["<|im_end|>"], ids) == ("the end", len(ids) - 1)
    assert read(BYTE_LEVEL, ["nd<|im_end|>i"], ids) == ("the e", len(ids))
    assert read(BYTE_LEVEL, ["<|im_start|>"], ids) == ("the endin", None)


def test_text_that_may_begin_a_stop_string_is_held_back():
    streamed = StreamedText(BYTE_LEVEL, ["ab!", "b?"])
    parts = [streamed(BYTE_LEVEL.token_to_id(c)) for c in "xabc"]
    assert parts == ["x", "", "", "abc"]
    parts = [streamed(BYTE_LEVEL.token_to_id(c)) for c in "ab?x"]
    assert parts == ["", "", "a", ""]
    assert streamed.stopped
    assert streamed.flush() == ""


def test_a_newline_byte_stops_at_once():
    ids = [SENTENCEPIECE.token_to_id(p) for p in ("▁the", "<0x0A>", "▁sea")]
    assert read(SENTENCEPIECE, ["\n"], ids) == ("the", 2)


@pytest.mark.parametrize(("starts_text", "text"), [(False, " x"), (True, "x")])
def test_a_text_of_its_own_loses_its_first_space(starts_text, text):
    the, x, sea = (SENTENCEPIECE.token_to_id(p) for p in ("▁the", "▁x", "▁sea"))
    assert read(SENTENCEPIECE, [" sea"], [x, sea], [the], starts_text=starts_text) == (text, 2)
    assert read(SENTENCEPIECE, ["e x"], [x, sea], [the], starts_text=starts_text)[1] == 1

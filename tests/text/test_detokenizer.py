"""Text as it streams is the text as a whole."""

import torch
from tokenizers import Tokenizer, decoders, models

import converters
from msrnn.text.detokenizer import Spelling


def test_pieces_join_to_the_text(gguf_path):
    tokenizer = converters.tokenizer(gguf_path)
    text = "Größe 大きい 🙂 — and so on.\n\tEnd"
    spelt = Spelling(tokenizer)
    assert "".join(map(spelt, tokenizer.encode(text).ids)) == text


def test_bytes_that_are_no_text_stop_nothing():
    """Random bytes, as a model without sense may write them: replaced, and the text goes on."""
    vocab = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}, "a": 257, "▁b": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    ids = torch.randint(1, 259, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    spelt = Spelling(tokenizer)
    text = "".join(map(spelt, [*ids, *[257] * 20]))
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert text.endswith("aaa"), text[-40:]

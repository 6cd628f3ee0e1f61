"""The streaming detokenizer against decoding of the whole text."""

import torch
from tokenizers import Tokenizer, decoders, models

import converters
from msrnn.text.detokenizer import StreamingDetokenizer


def test_streamed_chunks_join_to_the_text(gguf_path):
    tokenizer = converters.tokenizer(gguf_path)
    text = "Größe 大きい 🙂 — and so on.\n\tEnd"
    detokenize = StreamingDetokenizer(tokenizer)
    assert "".join(map(detokenize, tokenizer.encode(text).ids)) == text


def test_decoding_continues_after_invalid_bytes():
    """Random byte tokens become U+FFFD; later characters are decoded."""
    vocab = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}, "a": 257, "▁b": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    ids = torch.randint(1, 259, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    detokenize = StreamingDetokenizer(tokenizer)
    text = "".join(map(detokenize, [*ids, *[257] * 20]))
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert text.endswith("aaa"), text[-40:]

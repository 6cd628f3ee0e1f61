"""LLaMA tokenizers from GGUF metadata, compared with SentencePiece."""

import pytest
import sentencepiece
from support.tokenizer_texts import TEXTS

from converters.gguf.reader import read_tokenizer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Returns a function that trains a model like LLaMA's: BPE, byte tokens, single digits, spaces kept."""
    folder = tmp_path_factory.mktemp("spm")
    lines = [line for text in TEXTS.values() for line in text[:30_000].splitlines() if line]

    def train(**options):
        target = folder / "-".join(["m", *map(str, options.values())])
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(target),
            model_type="bpe",
            vocab_size=900,
            character_coverage=0.99,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            user_defined_symbols=["<tool>"],
            minloglevel=2,
            **options,
        )
        return sentencepiece.SentencePieceProcessor(model_file=f"{target}.model")

    return train


def pieces(model):
    n = model.vocab_size()
    kinds = {2: model.is_unknown, 3: model.is_control, 6: model.is_byte}
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [model.id_to_piece(i) for i in range(n)],
        "scores": [model.get_score(i) for i in range(n)],
        "token_type": [
            next((kind for kind, is_it in kinds.items() if is_it(i)), 4 if model.id_to_piece(i) == "<tool>" else 1)
            for i in range(n)
        ],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(("prefix", "fallback"), [(True, True), (False, True), (True, False)])
def test_ids_equal_those_of_sentencepiece(trainer, write_tokenizer, prefix, fallback):
    model = trainer(add_dummy_prefix=prefix, byte_fallback=fallback)
    rebuilt = read_tokenizer(write_tokenizer(**pieces(model), add_space_prefix=prefix, merges=None))
    n_unknown = 0
    for kind, text in TEXTS.items():
        text = text if prefix else text[:3000] + "<tool>" + text[3000:]
        found = rebuilt.encode(text).ids
        assert found == [1, *model.encode(text)], kind
        n_unknown += found.count(0)
        if fallback:
            assert rebuilt.decode(found) == text, kind
    assert (n_unknown == 0) == fallback
    assert rebuilt.encode("a</s>").tokens[-1] == "</s>"


def test_unused_tokens_are_not_produced(write_tokenizer):
    """Type 5: fillers of llama.cpp's converter, for example; SentencePiece splits such a token again."""
    changes = {"tokens": ["<unk>", "▁", "a", "b", "ab", "▁a"], "token_type": [2, 1, 1, 1, 5, 1]}
    rebuilt = read_tokenizer(
        write_tokenizer(model="llama", scores=[0.0, -3.0, -4.0, -5.0, -1.0, -2.0], add_bos_token=False, **changes)
    )
    assert rebuilt.encode("ab").tokens == ["▁a", "b"]
    assert rebuilt.encode("ac c").tokens == ["▁a", "<unk>", "▁", "<unk>"]


def test_pieces_with_equal_scores_are_merged_in_the_order_of_ids(write_tokenizer):
    metadata = {"tokens": ["<unk>", "a", "b", "c", "ab", "bc"], "token_type": [2, 1, 1, 1, 1, 1], "add_space_prefix": False}
    path = write_tokenizer(model="llama", scores=[0.0, *[-3.0] * 3, -1.0, -1.0], add_bos_token=False, **metadata)
    assert read_tokenizer(path).encode("abc").tokens == ["ab", "c"]

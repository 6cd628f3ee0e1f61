"""tokenizer.model, compared with the sentencepiece package, which trains the models and encodes the texts."""

import random

import pytest
from sentencepiece import sentencepiece_model_pb2
from support.sentencepiece_models import TEXTS, trained
from support.tiny_checkpoints import make_checkpoint, meta_params, to_meta, write_folder

import converters
import msrnn
from converters.tokenization.folder import read_tokenizer


@pytest.mark.parametrize(
    "more", [{}, {"add_dummy_prefix": False}, {"add_dummy_prefix": False, "user_defined_symbols": ["<tool>", "return"]}]
)
def test_ids_equal_those_of_sentencepiece(more, tmp_path):
    reference = trained(tmp_path / "tokenizer.model", **more)
    found = read_tokenizer(tmp_path)
    assert found.get_vocab_size() == reference.vocab_size()
    rng = random.Random(1)
    letters = [*sorted(set("".join(TEXTS))), "\n", "  ", "é", "🙂", "<tool>"]
    for text in [*TEXTS, *("".join(rng.choices(letters, k=20)) for _ in range(100))]:
        text = text.strip()  # spaces at the ends are tested in test_bpe.py
        assert found.encode(text).ids == [reference.bos_id(), *reference.encode(text)], text
        assert found.decode(found.encode(text).ids) == text


def test_tokenizer_is_read_and_converted(tmp_path):
    _, state, config = make_checkpoint("gqa", tmp_path / "hf")
    folder = write_folder(
        tmp_path / "meta", {"params.json": meta_params(config), "consolidated.00.pth": to_meta(state, config)}
    )
    with pytest.raises(msrnn.Error, match=r"has no tokenizer; expected one of tokenizer\.json, tokenizer\.model"):
        converters.tokenizer(folder)
    trained(folder / "tokenizer.model")
    ids = converters.tokenizer(folder).encode(TEXTS[0]).ids
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.warns(UserWarning, match="the tokenizer has ids up to 399, but the embedding has 60 rows"):
        converters.convert(folder, tmp_path / "own")
    assert converters.tokenizer(tmp_path / "own").encode(TEXTS[0]).ids == ids
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_type": "unigram"}, "kind 1; expected 2, BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes texts"),
        ({"remove_extra_whitespaces": True}, "normalizes texts"),
        ({"user_defined_symbols": ["<tool>"]}, "user-defined tokens"),
    ],
)
def test_other_models_are_refused(more, message, tmp_path):
    trained(tmp_path / "tokenizer.model", **more)
    with pytest.raises(msrnn.Error, match=message):
        read_tokenizer(tmp_path)


def test_normalization_is_on_where_the_file_does_not_state_it(tmp_path):
    """The default of remove_extra_whitespaces in SentencePiece's protocol buffer is true."""
    path = tmp_path / "tokenizer.model"
    trained(path)
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.ClearField("remove_extra_whitespaces")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(msrnn.Error, match="normalizes texts"):
        read_tokenizer(tmp_path)


def test_other_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    trained(path)
    data, rng = path.read_bytes(), random.Random(0)
    for content in (b"", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(msrnn.Error, match="SentencePiece model" if content else "empty"):
            read_tokenizer(tmp_path)
    for _ in range(60):
        bad = bytearray(data[: rng.randrange(1, len(data) + 1)])
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            found = read_tokenizer(tmp_path)
        except msrnn.Error:
            continue
        assert found.get_vocab_size() > 0

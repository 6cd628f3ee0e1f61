"""Tokenizers that list byte strings by rank: files of tiktoken and tekken, compared with transformers."""

import base64
import json

import pytest
import tokenizers
from support.sentencepiece_models import TEXTS
from support.tokenizer_folders import SAMPLES, TOKEN, assert_equals_transformers, write_settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

import converters
import msrnn
from converters.tokenization.folder import read_tokenizer


@pytest.fixture(scope="module")
def ranks():
    """Return byte strings of a byte-level BPE, in the order of their merges."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learner.train_from_iterator(TEXTS * 3, trainer)
    vocab = json.loads(learner.to_str())["model"]["vocab"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(n): n for n in printable}
    letters |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in printable)}
    return [bytes(letters[c] for c in token) for token in sorted(vocab, key=vocab.get)]


def write_ranks(folder, ranks):
    lines = (f"{base64.b64encode(token).decode()} {n}" for n, token in enumerate(ranks))
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")


def test_the_rank_file_of_a_hugging_face_folder_equals_transformers(ranks, tmp_path):
    write_ranks(tmp_path, ranks)
    n = len(ranks)
    tokens = {n: "<s>", n + 1: "</s>", n + 3: "<|im_start|>", n + 4: "<|im_end|>"}
    decoder = {str(i): {"content": token, **TOKEN} for i, token in tokens.items()}
    flags = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    write_settings(tmp_path, None, "llama", {"tokenizer_config.json": {"added_tokens_decoder": decoder}}, flags)
    reference = assert_equals_transformers(tmp_path)
    assert (
        reference.convert_ids_to_tokens(n + 2) == f"<|reserved_token_{n + 2}|>" == read_tokenizer(tmp_path).id_to_token(n + 2)
    )


@pytest.mark.parametrize(
    ("scaled", "names"), [(False, {8: "<|reserved_special_token_4|>"}), (True, {8: "<|eom_id|>", 10: "<|python_tag|>"})]
)
def test_the_rank_file_of_a_folder_of_meta(scaled, names, ranks, tmp_path):
    write_ranks(tmp_path, ranks)
    (tmp_path / "params.json").write_text(json.dumps({"use_scaled_rope": scaled}))
    found, n = converters.tokenizer(tmp_path), len(ranks)
    names |= {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    assert {i: found.id_to_token(n + i) for i in names} == names
    assert (found.get_vocab_size(), found.id_to_token(n + 255)) == (
        n + 256,
        f"<|reserved_special_token_{247 if scaled else 250}|>",
    )
    assert found.encode("the<|eot_id|>").tokens == ["<|begin_of_text|>", "the", "<|eot_id|>"]
    assert found.decode(found.encode(TEXTS[1]).ids) == TEXTS[1]


@pytest.mark.parametrize("listed", [True, False])
def test_tekken_equals_transformers(listed, ranks, tmp_path):
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    config = {
        "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "default_vocab_size": len(ranks) + 10,
        "default_num_special_tokens": 20,
    }
    fields = {
        "config": config,
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(x).decode()} for n, x in enumerate(ranks)],
    }
    if listed:
        fields["special_tokens"] = [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(special)]
    (tmp_path / "tekken.json").write_text(json.dumps(fields))
    found = read_tokenizer(tmp_path)
    assert found.encode("[INST] the").tokens[:2] == ["<s>", "[INST]"]
    if not listed:
        assert [found.id_to_token(n) for n in (3, 9, 19)] == ["[INST]", "[TOOL_CALLS]", "[TOOL_CONTENT]"]
        return
    reference = convert_tekken_tokenizer(str(tmp_path / "tekken.json"))
    assert found.get_vocab_size() == len(reference) == len(ranks) + 10
    for text in [*TEXTS, "[INST] the[/INST]</s> <SPECIAL_7>", *SAMPLES]:
        ids = reference(text)["input_ids"]
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.decode(ids, skip_special_tokens=False) == reference.decode(ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "2 of 2 tokens differ; expected each token once, and all 256 bytes"),
        ("tokenizer.model", "IQ== 0\nIg== 7\n", "has 2 lines; expected the ranks from 0 to 1"),
        ("tokenizer.model", "IQ== 0\n!! 1\n", "is not a file of tiktoken"),
        ("tekken.json", "{}", "has no vocab or no config.pattern"),
        ("tekken.json", json.dumps({"config": {"pattern": ""}, "vocab": [3]}), "a token has no token_bytes in base64"),
        (
            "tekken.json",
            json.dumps({"config": {"pattern": ""}, "vocab": [], "special_tokens": [3]}),
            "special_tokens are malformed",
        ),
        (
            "tekken.json",
            json.dumps({"config": {"pattern": "", "default_vocab_size": 2**40}, "vocab": []}),
            "has 0 tokens; expected 1099511627756 and 20 special ones",
        ),
    ],
)
def test_damaged_rank_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(msrnn.Error, match=message):
        read_tokenizer(tmp_path)

"""Ids, texts and chats of tokenizer folders equal those of transformers, for the combinations of the files of a folder."""

import base64
import json
from itertools import product

import pytest
import tokenizers
from support.sentencepiece_models import TEXTS, trained
from support.tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

import converters
import msrnn
from converters.extra_files import open_folder
from converters.tokenization.folder import read_tokenizer
from converters.tokenization.sentencepiece import parse_tokenizer
from msrnn.text.model_templates import open_template

TALK = [{"role": "user", "content": "hello the sea"}, {"role": "assistant", "content": " the answer"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ eos_token }}{% endfor %}"
    "{{ pad_token }}{{ unk_token }}"
)
SAMPLES = [
    *("", "hello the other", " the sea", "a  b\n\tc", "<s>the</s> the", "<|im_start|>user\nhello <|im_end|> the", "é世🙂"),
    *("x <tool>the <pad> a", "</s> <|im_end|><|im_end|>"),
]
TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def sentencepiece_json(folder):
    """Return a tokenizer.json as transformers 4 wrote it for LLaMA: a normalizer puts the space, and one adds bos."""
    trained(folder / "tokenizer.model")
    bare = parse_tokenizer((folder / "tokenizer.model").read_bytes(), folder)[0]
    (folder / "tokenizer.model").unlink()
    bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bare.to_str()


def metaspace_json(folder):
    """Return a tokenizer.json as transformers 5 writes it."""
    made = Tokenizer.from_str(sentencepiece_json(folder))
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made.to_str()


JSON = {
    "byte-level": lambda folder: tiny_tokenizer().to_str(),
    "normalizer": sentencepiece_json,
    "metaspace": metaspace_json,
}
ADDED = {
    "nothing": lambda n: {},
    "added_tokens.json": lambda n: {"added_tokens.json": {"<tool>": n + 2, "<|im_start|>": n, "<|im_end|>": n + 1}},
    "decoder": lambda n: {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "1": {"content": "<s>", **TOKEN},
                str(n): {"content": "<|im_start|>", **TOKEN},
                str(n + 1): {"content": "<|im_end|>", **TOKEN, "normalized": True, "special": False},
                str(n + 2): {"content": "<tool>", **TOKEN, "lstrip": True, "rstrip": True, "special": False},
            },
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", **TOKEN},
            "pad_token": "<pad>",
            "unk_token": None,
        },
        "special_tokens_map.json": {"bos_token": "not read"},
    },
    "own names": lambda n: {
        "tokenizer_config.json": {"model_specific_special_tokens": {"image_token": "<|im_start|>"}, "bos_token": "<s>"},
    },
    "own names in two fields": lambda n: {
        "tokenizer_config.json": {
            "model_specific_special_tokens": {"image_token": "<|im_start|>"},
            "audio_token": "<|im_end|>",
            "bos_token": "<s>",
        },
    },
    "special_tokens_map.json": lambda n: {
        "tokenizer_config.json": {"bos_token": "</s>", "eos_token": "<pad>"},
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>", **TOKEN},
            "pad_token": "<pad>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
    },
}
FLAGS = [
    {},
    {"legacy": True},
    {"legacy": False, "add_bos_token": True},
    {"add_prefix_space": False},
    {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True},
    {"add_bos_token": False},
]
CLASSES = (None, "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "OtherTokenizer")


def write_settings(folder, tokenizer_class, model_type, files, flags):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    settings = {**files.get("tokenizer_config.json", {}), **flags, "chat_template": TEMPLATE}
    if tokenizer_class is not None:
        settings["tokenizer_class"] = tokenizer_class
    for name, fields in (
        files | {"tokenizer_config.json": settings, "config.json": {"model_type": model_type, **sizes}}
    ).items():
        (folder / name).write_text(json.dumps(fields))


def assert_equal(folder):
    """Compare ids, decoded texts, special tokens and a chat with transformers."""
    reference, found, files = AutoTokenizer.from_pretrained(folder), read_tokenizer(folder), open_folder(None, {}, folder)
    rebuilt = Tokenizer.from_str(files.extra_files["tokenizer.json"].decode())
    for text in SAMPLES:
        for special in (True, False):
            ids = reference(text, add_special_tokens=special)["input_ids"]
            assert found.encode(text, add_special_tokens=special).ids == ids, (text, special)
            assert rebuilt.encode(text, add_special_tokens=special).ids == ids, (text, special)
        for skip in (True, False):
            assert found.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip), (text, skip)
    template = open_template(files.extra_files, found, None)
    chat = found.encode(template(TALK, add_generation_prompt=False), add_special_tokens=False).ids
    assert chat == reference.apply_chat_template(TALK, return_dict=False)
    return reference


@pytest.mark.parametrize("vocabulary", JSON)
def test_folders_with_tokenizer_json_equal_transformers(vocabulary, tmp_path):
    text = JSON[vocabulary](tmp_path)
    size = Tokenizer.from_str(text).get_vocab_size()
    cases = 0
    for n, (name, kind, added, flags) in enumerate(product(CLASSES, ("llama", "mistral"), ADDED, FLAGS)):
        if name == "GPT2Tokenizer" and vocabulary != "byte-level":
            continue
        if vocabulary == "byte-level" and added == "decoder":
            continue  # the ids of these tokens are others
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(text)
        files = ADDED[added](size)
        if vocabulary == "byte-level" and "added_tokens.json" in files:
            files = {"added_tokens.json": {"<tool>": size}}
        write_settings(folder, name, kind, files, flags)
        try:
            assert_equal(folder)
        except AssertionError as error:
            raise AssertionError(f"{name}, {kind}, {added}, {flags}") from error
        cases += 1
    assert cases > 150


@pytest.mark.parametrize("flags", [flags | {"add_bos_token": flags.get("add_bos_token", True)} for flags in FLAGS])
@pytest.mark.parametrize("added", ADDED)
def test_folders_with_tokenizer_model_equal_transformers(added, flags, tmp_path):
    """transformers adds no bos where the files do not say so; here the default is that of SentencePiece's LLaMA, to add it."""
    size = trained(tmp_path / "tokenizer.model").vocab_size()
    write_settings(tmp_path, "LlamaTokenizer", "llama", ADDED[added](size), flags)
    assert_equal(tmp_path)


def test_added_tokens_beside_tokenizer_model_are_known(tmp_path):
    """Without a class of transformers, SentencePiece's rules apply between the added tokens."""
    reference = trained(tmp_path / "tokenizer.model")
    size = reference.vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "<|im_end|>": size + 1}))
    found = read_tokenizer(tmp_path)
    assert found.encode("<|im_start|> the sea<|im_end|>the").ids == [
        *(1, size, *reference.encode(" the sea"), size + 1),
        *reference.encode("the"),
    ]


def test_ids_with_gaps_are_refused(tmp_path):
    size = trained(tmp_path / "tokenizer.model").vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size + 5}))
    with pytest.raises(
        msrnn.Error, match=f"gives the added token '<tool>' the id {size + 5}, but the tokenizer gives it {size}"
    ):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token"),
        (
            "tokenizer_config.json",
            {"bos_token": {"lstrip": True}},
            "bos_token is .*; expected text, or an object with its content",
        ),
        ("tokenizer_config.json", {"bos_token": {"content": "a", "lstrip": 1}}, "bos_token: lstrip is 1; expected a bool"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; expected a dict"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "the id of an added token is 'x'"),
        ("tokenizer_config.json", {"legacy": "yes"}, "legacy is 'yes'; expected a bool"),
        ("tokenizer_config.json", {"extra_special_tokens": "a"}, "extra_special_tokens is 'a'; expected a list"),
        ("tokenizer_config.json", {"model_specific_special_tokens": []}, r"tokens is \[\]; expected a dict"),
        ("added_tokens.json", {"a": -1}, "the id of an added token is -1; expected an int of at least 0"),
        ("added_tokens.json", {"a": True}, "the id of an added token is True"),
    ],
)
def test_settings_of_another_type_are_refused(name, fields, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(msrnn.Error, match=message):
        read_tokenizer(tmp_path)


def test_special_tokens_are_split_if_the_settings_say_so(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    write_settings(tmp_path, "PreTrainedTokenizerFast", "llama", {}, {"split_special_tokens": True})
    reference = AutoTokenizer.from_pretrained(tmp_path)
    found = read_tokenizer(tmp_path)
    for text in SAMPLES:
        assert found.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False)["input_ids"]


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
    reference = assert_equal(tmp_path)
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

"""Tokenizer folders with given settings, and the comparison of what is read from one with transformers."""

import json

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from converters.extra_files import open_folder
from converters.tokenization.folder import read_tokenizer
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


def write_settings(folder, tokenizer_class, model_type, files, flags):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    settings = {**files.get("tokenizer_config.json", {}), **flags, "chat_template": TEMPLATE}
    if tokenizer_class is not None:
        settings["tokenizer_class"] = tokenizer_class
    for name, fields in (
        files | {"tokenizer_config.json": settings, "config.json": {"model_type": model_type, **sizes}}
    ).items():
        (folder / name).write_text(json.dumps(fields))


def assert_equals_transformers(folder):
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

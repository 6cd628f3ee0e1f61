"""A tiny cell for chats: a byte-level tokenizer without training, and the chat templates of well-known families."""

import torch
from support.tiny_models import tiny_cell
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from msrnn.models.llama import Llama

ALTERNATE = """{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must \
alternate user/assistant/user/assistant/...') }}{% endif %}"""
TEMPLATES = {
    "ChatML": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' \
+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "Yi": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}\
{% if system_message is defined %}{{ system_message }}{% endif %}{% for message in messages %}{% set content = \
message['content'] %}{% if message['role'] == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n<|im_start|>\
assistant\\n' }}{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}""",
    "Llama 2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = \
messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}"""
    + ALTERNATE
    + """{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + \
'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "Mistral": "{{ bos_token }}{% for message in messages %}"
    + ALTERNATE
    + """{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == \
'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') \
}}{% endif %}{% endfor %}""",
    "Llama 3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' \
+ message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}\
{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "Zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "the system text moves": """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {%- if loop.last and ns.system %}{{- '[INST] ' + ns.system + '\\n\\n' + message.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{%- endif %}
    {%- else %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}
{%- endfor %}""",
    "reasoning is removed": """{%- if strftime_now is defined %}{{- strftime_now('%Y') + ' ' + {'a<b': tools is none} | \
tojson }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
{%- generation %}
{{- '<|im_start|>assistant\\n' + message.content.split('e')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- endgeneration %}
    {% else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
}
"""Chat templates as in the checkpoints of the families, and two that render earlier turns differently."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer of printable ASCII with a few merges and ``SPECIAL_TOKENS`` (ids 0 to 4).

    It adds ``<s>`` before every text.
    """
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]  # byte-level BPE writes space and newline so
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("Ġ", "the"), ("a", "b"), ("ab", "a"), ("Ċ", "Ċ"), ("o", "n")]
    vocab = {token: n for n, token in enumerate([*SPECIAL_TOKENS, *letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


PIECES = ["▁", "▁▁", "▁▁▁▁", "▁the", "▁line", "▁for", "▁x", "▁sea", "▁return", "a", "€", "\N{REPLACEMENT CHARACTER}", "<s>"]
PIECES += ["<0x0A>", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0x41>"]


def sentencepiece_tokenizer() -> Tokenizer:
    """Return a tokenizer of ``PIECES`` and all byte tokens, with the decoder of LLaMA 2; ``<s>`` is special."""
    pieces = dict.fromkeys(["<unk>", *PIECES, *(f"<0x{i:02X}>" for i in range(256))])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def chat_cell(
    template: str | None = TEMPLATES["ChatML"],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    eos_token_ids: tuple[int, ...] = (2,),
) -> Llama:
    """Return a random cell with :func:`tiny_tokenizer` and ``template`` as extra files; bos is ``<s>``, eos ``<|im_end|>``."""
    tokenizer = tiny_tokenizer()
    size = tokenizer.get_vocab_size()
    cell = tiny_cell(seed, dtype, vocab_size=size, context_length=4096, bos_token_id=3, eos_token_ids=eos_token_ids)
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    cell.extra_files = files if template is None else {**files, "chat_template.jinja": template.encode()}
    return cell

"""Chat templates against transformers; unsafe and failing templates raise a one-line error."""

import pytest
from support.tiny_tokenizer import TEMPLATES, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

import msrnn
from msrnn.text.chat_template import ChatTemplate

TALK = [
    {"role": "system", "content": " Be <brief>. "},
    {"role": "user", "content": "the first\nquestion & more "},
    {"role": "assistant", "content": " an answer's <b>\n"},
    {"role": "user", "content": "the second one"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "étrange \N{SNOWMAN}"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_rendering_equals_that_of_transformers(name):
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="<|im_end|>")
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "<|im_end|>"})
    texts = set()
    for first in (0, 1)[name == "Mistral" :]:
        for last in range(first + 1 + (first == 0), len(TALK) + 1):
            for prompt in (False, True):
                expected = reference.apply_chat_template(
                    TALK[first:last], chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt
                )
                texts.add(template(TALK[first:last], add_generation_prompt=prompt))
                assert template(TALK[first:last], add_generation_prompt=prompt) == expected
    assert len(texts) >= 5


def test_json_in_a_template_equals_that_of_transformers():
    source = "{{ tools | tojson }}|{{ messages | tojson(indent=2) }}|{{ messages | tojson(ensure_ascii=true, sort_keys=true) }}"
    tool = {"name": "é", "description": "<b> & 'the' \N{SNOWMAN}", "parameters": {"z": [1, None], "a": True}}
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer())
    expected = reference.apply_chat_template(TALK, tools=[tool], chat_template=source, tokenize=False)
    assert ChatTemplate(source, tools=[tool])(TALK, add_generation_prompt=False) == expected
    assert "\N{SNOWMAN}" in expected


def test_the_template_of_smollm_equals_transformers(smollm, hf_folder):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(hf_folder)
    template = ChatTemplate(smollm.extra_files["chat_template.jinja"].decode())
    for talk in (TALK, TALK[1:]):
        expected = reference.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert template(talk, add_generation_prompt=True) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no\\n such thing') }}", r"\(no such thing\)"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages[99].content.x }}", "no element 99"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{% for a in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10 ** 18 }}", "rejects"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ strftime_now.__globals__['__builtins__'] }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_unsafe_and_failing_templates_raise_one_line(source, message):
    with pytest.raises(msrnn.Error, match=message) as error:
        ChatTemplate(source)(TALK, add_generation_prompt=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "inside",
    ["messages.__class__", "raise_exception.__globals__", "'{0.__class__}'.format(1)", "''|attr('__class__')", "dict.mro"],
)
def test_python_internals_render_as_nothing(inside):
    assert ChatTemplate("{{ " + inside + " }}")(TALK, add_generation_prompt=True) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ 2**100000 }}",
        "{% if %}",
        "{{ x",
        "{% unknown_tag %}",
        "{% generation %}",
        "(" * 9 + "{{" + "(" * 9999 + "}}",
    ],
)
def test_invalid_jinja_raises_in_the_constructor(source):
    with pytest.raises(msrnn.Error, match="not valid Jinja"):
        ChatTemplate(source)


SHOWN = "{{ enable_thinking | default('unset') }}|{{ tools | tojson if tools else '' }}|{{ documents }}|{{ bos_token }}"
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": (1, None)}}}},
}


@pytest.mark.parametrize(
    ("variables", "tools"),
    [
        ({}, None),
        ({"enable_thinking": False}, None),
        ({"enable_thinking": {"a": [1, 2.5]}, "bos_token": "new"}, [TOOL, TOOL]),
        ({"documents": [{"title": "t", "text": "x"}]}, []),
    ],
)
def test_variables_and_tools_are_rendered_as_by_transformers(variables, tools):
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<s>")
    options = {"chat_template": SHOWN, "tokenize": False, "tools": tools, **variables}
    template = ChatTemplate(SHOWN, {"bos_token": "<s>", **variables}, tools)
    assert template(TALK[:1], add_generation_prompt=False) == reference.apply_chat_template(TALK[:1], **options)


@pytest.mark.parametrize(
    ("variables", "tools", "message"),
    [
        ({"x": object()}, None, "template variable x contains <object.*; expected text, numbers, bools, None, lists and dicts"),
        ({"x": {"y": [{1}]}}, None, r"template variable x contains \{1\}"),
        ({"messages": []}, None, "template variable is named 'messages'; expected a name, and none of messages, tools"),
        ({"a b": 1}, None, "template variable is named 'a b'"),
        ([1], None, r"template_variables are \[1\]; expected a dict"),
        ({}, {"name": "f"}, "tools are .*; expected a list of JSON schemas"),
        ({}, [len], "a tool is <built-in function len>; expected a JSON schema, .*get_json_schema makes one"),
        ({}, [{"name": len}], "a tool contains <built-in function len>"),
    ],
)
def test_other_variables_and_tools_are_refused(variables, tools, message):
    with pytest.raises(msrnn.Error, match=message):
        ChatTemplate("", variables, tools)

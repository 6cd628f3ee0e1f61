"""A chat template writes what transformers writes, and whatever else it tries is refused in a sentence."""

import pytest
from support.tiny_tokenizer import TEMPLATES, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

import msrnn
from msrnn.text.chat_template import Template

TALK = [
    {"role": "system", "content": " Be <brief>. "},
    {"role": "user", "content": "the first\nquestion & more "},
    {"role": "assistant", "content": " an answer's <b>\n"},
    {"role": "user", "content": "the second one"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "étrange \N{SNOWMAN}"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_what_transformers_writes(name):
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="<|im_end|>")
    template = Template(TEMPLATES[name], "<s>", "<|im_end|>")
    texts = set()
    for first in (0, 1)[name == "Mistral" :]:
        for last in range(first + 1 + (first == 0), len(TALK) + 1):
            for ask in (False, True):
                expected = reference.apply_chat_template(
                    TALK[first:last], chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=ask
                )
                texts.add(template(TALK[first:last], ask=ask))
                assert template(TALK[first:last], ask=ask) == expected
    assert len(texts) >= 5


def test_the_real_template(smollm, hf_folder):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(hf_folder)
    template = Template(smollm.extra_files["chat_template.jinja"].decode())
    for talk in (TALK, TALK[1:]):
        expected = reference.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert template(talk, ask=True) == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('no\\n such thing') }}", r"\(no such thing\)"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages[99].content.x }}", "no element 99"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{% for a in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10 ** 18 }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ strftime_now.__globals__['__builtins__'] }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_what_a_template_may_not_is_one_sentence(source, said):
    with pytest.raises(msrnn.Error, match=said) as refused:
        Template(source)(TALK, ask=True)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "inside",
    ["messages.__class__", "raise_exception.__globals__", "'{0.__class__}'.format(1)", "''|attr('__class__')", "dict.mro"],
)
def test_the_inside_of_python_reads_as_nothing(inside):
    assert Template("{{ " + inside + " }}")(TALK, ask=True) == ""


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x", "{% unheard of %}", "{% generation %}", "(" * 9 + "{{" + "(" * 9999 + "}}"]
)
def test_what_is_no_template_is_refused_at_once(source):
    with pytest.raises(msrnn.Error, match="cannot be read"):
        Template(source)

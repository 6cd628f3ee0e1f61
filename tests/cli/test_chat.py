"""Options of ``msrnn chat`` for the chat template."""

import argparse
import io
import json

import pytest
from support.tiny_tokenizer import chat_cell

from msrnn.cli.chat import template_variable
from msrnn.cli.main import main

TEMPLATE = "{{ mode }}{{ tools | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("text", "found"),
    [("a=false", ("a", False)), ("a=[1]", ("a", [1])), ("a=text", ("a", "text")), ("a=b=c", ("a", "b=c")), ("a=", ("a", ""))],
)
def test_values_are_json_or_text(text, found):
    assert template_variable(text) == found


def test_a_variable_without_a_value_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="'a' has no =; expected NAME=VALUE"):
        template_variable("a")


def test_variables_and_tools_reach_the_template(tmp_path, monkeypatch, capsys):
    chat_cell(TEMPLATE).save(tmp_path / "model")
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "f"}, {"name": "g"}]))
    options = ["--template-variable", "mode=abc", "--tools", str(tmp_path / "tools.json"), "--max-new-tokens", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", str(tmp_path / "model"), *options]) == 0
    assert "[9 tokens read, 3 generated" in capsys.readouterr().err.replace(
        "cut off at 3 tokens; ", ""
    )  # aba c 2 h e l l o, end


@pytest.mark.parametrize(("content", "message"), [("[", "tools.json is not JSON"), ("{}", "expected a list of JSON schemas")])
def test_other_tools_are_refused(content, message, tmp_path, capsys):
    chat_cell(TEMPLATE).save(tmp_path / "model")
    (tmp_path / "tools.json").write_text(content)
    assert main(["chat", str(tmp_path / "model"), "--tools", str(tmp_path / "tools.json")]) == 1
    assert message in capsys.readouterr().err

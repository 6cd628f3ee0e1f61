"""``msrnn generate`` with the real weights, and continued texts with a tiny model."""

import re

import pytest
import torch
from support.command_line import PROMPT, run
from support.tiny_models import assert_close, assert_same
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import converters
import msrnn
from msrnn.cli import loading
from msrnn.cli.main import main


def test_text_is_that_of_generate(gguf_path, smollm, capfd):
    tokenizer = converters.tokenizer(gguf_path)
    tokens = torch.tensor([tokenizer.encode(PROMPT).ids])
    new, state, _ = msrnn.generate(smollm, tokens, smollm.initial_state(1, "tova:8"), max_new_tokens=12)
    assert main(["generate", str(gguf_path), "--prompt", PROMPT, "--reduction", "tova:8", "--max-new-tokens", "12"]) == 0
    out, err = capfd.readouterr()
    assert out == tokenizer.decode(new[0].tolist()) + "\n"
    assert f"{tokens.shape[1]} prompt tokens read" in err
    assert f"{state.nbytes / 1e6:.2f} MB" in err


@pytest.mark.parametrize("sampling", [[], ["--sample", "--seed", "0", "--top-k", "2"]])
def test_speculative_decoding_generates_the_same_text(sampling, hf_folder, capfd):
    common = ["generate", str(hf_folder), "--prompt", "one two three one two three one two", "--reduction", "tova:16"]
    command = [*common, "--max-new-tokens", "24", "--ignore-eos", *sampling]
    assert main(command) == 0
    plain, err = capfd.readouterr()
    assert "forward pass" not in err
    for method in ("jacobi", "lookahead"):
        assert main([*command, "--decode", method]) == 0
        out, err = capfd.readouterr()
        assert out == plain
        assert "24 generated" in err
        counts = re.search(r"tokens per forward pass \(\d+: (.*?)\)", err)
        if method == "lookahead" and not sampling:
            assert counts  # drafts of a greedy text that repeats itself are accepted
        if not counts:
            assert "forward pass" not in err
        else:
            groups = [group.split(" of ") for group in counts[1].split(", ")]
            assert sum(int(passes) * int(tokens) for passes, tokens in groups) == 24


def test_prompts_from_a_file_and_from_standard_input_are_the_same(gguf_path, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    common = ("generate", gguf_path, "--max-new-tokens", 4, "--sample", "--seed", 1)
    from_file = run(*common, "--prompt-file", tmp_path / "prompt.txt")
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout == run(*common, "--stdin", input=PROMPT).stdout
    assert len(from_file.stdout.strip()) > 3


# Continuing a text with --state, stop strings and chat templates, on a tiny model.


@pytest.fixture
def model(tmp_path):
    chat_cell(seed=4).save(tmp_path / "model")
    return tmp_path / "model"


def generated(capfd, *args):
    """Run ``msrnn generate`` and return its text without the last newline."""
    code = main(["generate", *map(str, args)])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out.removesuffix("\n")


@pytest.mark.parametrize("method", ["plain", "jacobi", "lookahead"])
@pytest.mark.parametrize("more", [[], ["--stop", "zq", "--stop", "<"], ["--ignore-eos"]])
def test_ten_and_ten_tokens_are_twenty(method, more, model, tmp_path, capfd):
    command = (model, "--reduction", "tova:8", *more)
    start = ("--prompt", "the end in a", "--decode", method, "--state")
    whole = generated(capfd, *command, *start, tmp_path / "whole", "--max-new-tokens", 20)
    parts = generated(capfd, *command, *start, tmp_path / "parts", "--max-new-tokens", 10)
    parts += generated(capfd, model, *more, "--state", tmp_path / "parts", "--max-new-tokens", 10)
    assert parts == whole
    (state, logits), (expected, last) = (msrnn.load_state(tmp_path / name, logits=True) for name in ("parts", "whole"))
    assert_same(state, expected, 1e-8)
    assert_close(logits, last, 1e-8)


def test_a_prompt_continues_the_text_of_the_file(model, tmp_path, capfd):
    """The state is that of one text; no second bos token is read."""
    cell, tokenizer = msrnn.load(model), tiny_tokenizer()
    first = generated(capfd, model, "--prompt", "the end", "--state", tmp_path / "state", "--max-new-tokens", 4, "--ignore-eos")
    second = generated(capfd, model, "--prompt", " in a", "--state", tmp_path / "state", "--max-new-tokens", 4, "--ignore-eos")
    ids = torch.tensor([tokenizer.encode("the end").ids])
    new, state, _ = msrnn.generate(cell, ids, max_new_tokens=4)
    more = torch.tensor([tokenizer.encode(" in a", add_special_tokens=False).ids])
    rest, state, logits = msrnn.generate(cell, more, state, max_new_tokens=4)
    assert (first, second) == (tokenizer.decode(new[0].tolist()), tokenizer.decode(rest[0].tolist()))
    saved, last = msrnn.load_state(tmp_path / "state", logits=True)
    assert_same(saved, state, 1e-8)
    assert_close(last, logits, 1e-8)


@pytest.mark.parametrize("method", ["plain", "lookahead"])
def test_8_bit_rows_are_saved_and_continued(method, model, tmp_path, capfd):
    cell, ids = msrnn.load(model), torch.tensor([tiny_tokenizer().encode("the end in a").ids])
    start = cell.initial_state(1, "tova:8", dtype=torch.int8)
    new, state, _ = msrnn.generate(cell, ids, start, max_new_tokens=20)
    common = (model, "--decode", method, "--state", tmp_path / "state", "--ignore-eos", "--max-new-tokens", 10)
    first = generated(capfd, *common, "--prompt", "the end in a", "--reduction", "tova:8", "--kv-dtype", "int8")
    second = generated(capfd, *common, *(["--kv-dtype", "int8"] if method == "plain" else []))
    assert first + second == tiny_tokenizer().decode(new[0].tolist())
    saved = msrnn.load_state(tmp_path / "state")
    assert saved.dtype == torch.int8
    assert_same(saved, state, 1e-6)


def test_the_text_of_a_file_that_has_ended(tmp_path, capfd):
    model, state = tmp_path / "model", tmp_path / "state"
    chat_cell(seed=4, eos_token_ids=(tiny_tokenizer().token_to_id("C"),)).save(model)
    free = generated(capfd, model, "--prompt", "the end", "--max-new-tokens", 40, "--ignore-eos")
    text = generated(capfd, model, "--prompt", "the end", "--state", state, "--max-new-tokens", 40)
    assert free.startswith(text)
    assert len(text) < len(free)
    before = state.read_bytes()
    assert main(["generate", str(model), "--state", str(state)]) == 0
    out, err = capfd.readouterr()
    assert out == "\n"
    assert "the text of the file has ended" in err
    assert state.read_bytes() == before


def test_printed_text_ends_before_a_stop_string(model, tmp_path, capfd):
    free = generated(capfd, model, "--prompt", "the end in", "--max-new-tokens", 20, "--ignore-eos")
    stop = free[5:7]
    command = (model, "--prompt", "the end in", "--max-new-tokens", 20, "--ignore-eos", "--stop", stop, "--stop", "never")
    for method in ("plain", "jacobi", "lookahead"):
        state = tmp_path / method
        assert generated(capfd, *command, "--decode", method, "--state", state) == free[: free.index(stop)]
        tokens = msrnn.load_state(state).recent_tokens[0].tolist()
        assert tiny_tokenizer().decode(tokens).endswith(stop)


def test_a_prompt_in_the_chat_template(model, tmp_path, capfd):
    cell = msrnn.load(model)
    chat = msrnn.Chat(cell, tiny_tokenizer(), reduction="tova:12", max_new_tokens=30)
    answer = "".join(chat.reply("hello the other"))
    command = (model, "--chat", "--prompt", "hello the other", "--reduction", "tova:12", "--max-new-tokens", 30)
    assert generated(capfd, *command, "--state", tmp_path / "state") == answer
    assert_same(msrnn.load_state(tmp_path / "state"), chat.state, 1e-8)


def test_arguments_that_do_not_fit_are_refused(model, tmp_path, capfd):
    state, chat = tmp_path / "state", tmp_path / "chat"
    generated(capfd, model, "--prompt", "the", "--reduction", "tova:8", "--state", state, "--max-new-tokens", 2)
    talk = msrnn.Chat(msrnn.load(model), tiny_tokenizer(), max_new_tokens=3)
    list(talk.reply("hello"))
    talk.save(chat)
    msrnn.load_state(state).save(tmp_path / "bare")
    (tmp_path / "text").write_text("no state")
    msrnn.load_state(state).select([0, 0]).save(tmp_path / "two")
    refused = {
        (): "there is no prompt; expected --prompt, --prompt-file or --stdin",
        ("--state", tmp_path / "new"): "new does not exist; expected --prompt",
        ("--state", tmp_path / "bare"): "holds no logits",
        ("--state", chat, "--prompt", "x"): "is a saved chat",
        ("--state", tmp_path / "text"): "safetensors",
        ("--state", tmp_path / "two", "--prompt", "x"): "batch size 2",
        ("--state", tmp_path / "no" / "folder", "--prompt", "x"): "cannot write",
        ("--state", state, "--reduction", "tova:9"): "--reduction is tova:9, but the state in .* has tova:8; omit --reduction",
        ("--state", state, "--kv-dtype", "int8"): r"--kv-dtype is int8, but .* has torch\.float\d+ rows; omit --kv-dtype",
        ("--chat", "--state", state, "--prompt", "x"): "--chat starts a conversation, but .* already holds a text",
        ("--chat", "--state", state): "--chat starts a conversation, but there is no prompt",
    }
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for args, message in refused.items():
        assert main(["generate", str(model), *map(str, args)]) == 1, args
        out, err = capfd.readouterr()
        assert out == ""
        assert re.search(message, err), (args, err)
        assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files


def test_a_smaller_number_of_threads_is_named(model, monkeypatch, capsys):
    monkeypatch.setattr(loading, "use_idle_cpus", lambda: 0)
    assert main(["generate", str(model), "--prompt", "the end", "--max-new-tokens", "1"]) == 0
    words = f"msrnn: 0 of {torch.get_num_threads()} threads, because no more CPUs are idle"
    assert words in capsys.readouterr().err

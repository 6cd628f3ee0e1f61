"""``msrnn generate`` with the real weights."""

import re

import pytest
import torch
from support.command_line import PROMPT, run

import converters
import msrnn
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
@pytest.mark.parametrize("method", ["jacobi", "lookahead"])
def test_speculative_decoding_generates_the_same_text(method, sampling, gguf_path, capfd):
    common = ["generate", str(gguf_path), "--prompt", "one two three one two three one two", "--reduction", "tova:16"]
    command = [*common, "--max-new-tokens", "24", "--ignore-eos", *sampling]
    assert main(command) == 0
    plain, err = capfd.readouterr()
    assert "forward pass" not in err
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

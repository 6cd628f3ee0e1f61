"""The real Gemma 3 270M, from the GGUF file that ``make gemma`` fetches, compared with transformers; skipped without it."""

import json
import os
from pathlib import Path

import pytest
import torch
from support.command_line import run

import converters
import msrnn

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "gemma3_270m_hf.json").read_text())
"""Results of transformers for 900 tokens of Moby-Dick: ids, nll of each next token, argmax."""
TOKENS = torch.tensor([GOLDEN["tokens"]])
PROMPT = "Call me Ishmael. Some years ago"


@pytest.fixture(scope="module")
def path():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    file = cache / "msrnn" / "gemma-3-270m.Q4_K_M.gguf"
    if not file.is_file():
        pytest.skip(f"Gemma is not at {file}; `make gemma` fetches it (253 MB)")
    return file


@pytest.fixture(scope="module")
def gemma(path):
    return converters.load(path)


@pytest.fixture(scope="module")
def logits(gemma):
    """Logits of the published model, ``(900, V)``."""
    return gemma(TOKENS)[0][0]


def test_nll_and_argmax_equal_the_golden_file(gemma, logits, figure):
    assert gemma.config.windows == ((512,) * 5 + (None,)) * 3
    nll = -logits[:-1].log_softmax(-1).gather(1, TOKENS[0, 1:, None])[:, 0]
    worst = (nll - torch.tensor(GOLDEN["nll"])).abs().max().item()
    figure(f"{worst:.1e} from the nll of transformers: Gemma 3 270M, {len(nll)} tokens in float32, windows of 512")
    assert worst <= 2e-3
    assert logits.argmax(-1).tolist()[: len(GOLDEN["argmax"])] == GOLDEN["argmax"]


def test_logits_equal_transformers_reading_of_the_file(path, logits, figure):
    from transformers import AutoModelForCausalLM

    n = 640  # past the window
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    assert model.config.sliding_window == 512
    with torch.no_grad():
        expected = model(TOKENS[:, :n]).logits[0]
    worst = (logits[:n] - expected).abs().max().item()
    figure(f"{worst:.1e} from transformers' reading of the GGUF file: Gemma 3 270M, {n} tokens in float32")
    assert worst <= 2e-3
    assert torch.equal(logits[:n].argmax(-1), expected.argmax(-1))


def test_the_windows_matter(gemma, logits):
    """The comparisons above reach past the windows: without them the logits of the last tokens differ."""
    unbounded = gemma(TOKENS[:, :640], gemma.initial_state(1, "all-layers:full"))[0][0]
    difference = (unbounded - logits[:640]).abs().amax(-1)
    assert difference[:512].max() < 1e-3
    assert difference[512:].max() > 0.1


@pytest.mark.parametrize("reduction", [None, "tova:256"])
def test_steps_equal_many_tokens(gemma, reduction, figure):
    n = 600
    start = gemma.initial_state(1, reduction)
    expected, end = gemma(TOKENS[:, :n], start)
    state, total, worst, n_equal = start, 0.0, 0.0, 0
    for t in range(n):
        row, state = gemma.step(TOKENS[:, t], state)
        difference = (row[0] - expected[0, t]).abs()
        total, worst = total + difference.mean().item(), max(worst, difference.max().item())
        n_equal += int(row[0].argmax() == expected[0, t].argmax())
    name = "published windows" if reduction is None else reduction
    figure(f"{total / n:.1e} mean, {worst:.1e} maximum between steps and many tokens: Gemma 3 270M, {n} tokens, {name}")
    assert total / n <= 1e-4
    assert n_equal == n
    for H, other in zip(state, end, strict=True):
        assert sorted(H.positions[0, 0].tolist()) == sorted(other.positions[0, 0].tolist())
    assert len(state[5].positions[0, 0]) == (n if reduction is None else 256)  # a layer without a window


def test_converted_folders_give_the_same_logits(path, logits, tmp_path, figure):
    """Both forms have the numbers of the file in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    n = 640
    converters.convert(path, tmp_path / "own")
    own = msrnn.load(tmp_path / "own")
    assert (own(TOKENS[:, :n])[0][0] - logits[:n]).abs().max() <= 1e-3
    del own
    converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(TOKENS[:, :n]).logits[0]
    worst = (logits[:n] - expected).abs().max().item()
    figure(f"{worst:.1e} from transformers, after conversion to its format: Gemma 3 270M, {n} tokens in float32")
    assert worst <= 2e-3
    assert torch.equal(logits[:n].argmax(-1), expected.argmax(-1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "a  b\n\n\tCall me Ishmael.<end_of_turn>"
    assert tokenizer(text)["input_ids"] == converters.tokenizer(path).encode(text).ids


def test_text_is_encoded_as_in_the_golden_file(path):
    tokenizer = converters.tokenizer(path)
    text = tokenizer.decode(GOLDEN["tokens"])
    assert text.count("\n\n") >= 3
    assert tokenizer.encode(text).ids == GOLDEN["tokens"]
    chat = tokenizer.encode("<start_of_turn>user\nhi<end_of_turn>\n\n   x").tokens
    assert chat == ["<bos>", "<start_of_turn>", "user", "\n", "hi", "<end_of_turn>", "\n\n", "   ", "x"]


@pytest.mark.parametrize("more", [(), ("--reduction", "tova:64"), ("--weights", "int4")])
def test_a_prompt_is_continued(path, more):
    out = run("generate", path, "--prompt", PROMPT, "--max-new-tokens", 12, *more).stdout
    assert "I was" in out


def test_info_and_chat(path):
    out = run("info", path).stdout
    assert "window:511 in 15 layers, full in 3" in out
    assert "in Q8_0" in out
    assert "no chat template" in run("chat", path, input="").stderr  # the file is of the base model


def test_a_file_without_four_bit_blocks_is_not_packed(path):
    """Its matrices have the types Q4_K, Q5_0, Q6_K and Q8_0, of which none is a group of 32 numbers in 4 bits."""
    with pytest.raises(msrnn.Error, match="has no matrices of type Q4_0 or Q4_1; expected 'int4' or 'int8'"):
        converters.load(path, weights="packed")


@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.02), ("int4", 0.3)])
def test_packed_weights_cost_little(path, logits, weights, bound, figure):
    cell = converters.load(path, weights=weights)
    n, next_tokens = 256, TOKENS[0, 1:257, None]
    exact, found = (-x[:n].float().log_softmax(-1).gather(1, next_tokens).mean() for x in (logits, cell(TOKENS[:, :n])[0][0]))
    figure(f"{found - exact:+.4f} nats per token with {weights} weights: Gemma 3 270M, {n} tokens")
    assert abs(found - exact) < bound

"""Log-probabilities of the many-token path equal those that were recorded while the tokens were sampled step by step."""

import pytest
import torch
from support.refusals import refusing
from support.tiny_models import assert_close, random_tokens, tiny_cell

import converters
import msrnn
from msrnn.decoding import log_probs as module

PROMPT, LENGTHS = random_tokens(0, 3, 8), torch.tensor([8, 3, 5])
TEXT = random_tokens(1, 2, 13)


def rollout(cell, reduction, temperature, n=12):
    """Sample from ragged prompts; return the tokens ``(B, n)`` and the log-probabilities of the steps, computed in numpy."""
    state = cell.initial_state(3, reduction)
    logits, state = cell(PROMPT, state, lengths=LENGTHS, last_only=True)
    generator, tokens, recorded = torch.Generator().manual_seed(0), [], []
    settings = {"do_sample": True, "temperature": temperature, "max_new_tokens": n, "generator": generator}
    for step in msrnn.stream(cell, state=state, logits=logits, **settings):
        z = (logits.double() / temperature).numpy()
        z = z - z.max(-1, keepdims=True)
        chosen = z[range(3), step.token.tolist()]
        recorded.append(torch.from_numpy(chosen - torch.from_numpy(z).exp().sum(-1).log().numpy()))
        tokens.append(step.token)
        logits = step.logits
    return torch.stack(tokens, dim=1), torch.stack(recorded, dim=1)


@pytest.mark.parametrize("reduction", ["full", "tova:5", "tova-head:4", "h2o:6", "window:3"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_they_equal_those_of_the_rollout(reduction, temperature, figure):
    cell = tiny_cell()
    tokens, recorded = rollout(cell, reduction, temperature)
    logits, state = cell(PROMPT, cell.initial_state(3, reduction), lengths=LENGTHS, last_only=True)
    found = msrnn.log_probs(cell, tokens, state, logits=logits, temperature=temperature)
    assert found.dtype == torch.float64
    assert_close(found, recorded, 1e-9)
    if reduction != "full":  # a model with another KV cache gives others
        logits, state = cell(PROMPT, cell.initial_state(3, "full"), lengths=LENGTHS, last_only=True)
        assert (msrnn.log_probs(cell, tokens, state, logits=logits) - recorded).abs().max() > 0.01
    figure(f"log-probabilities under {reduction}: {float((found - recorded).abs().max()):.1e} from those of the rollout")


def test_real_weights_in_float32(smollm, gguf_path, figure):
    ids = torch.tensor([converters.tokenizer(gguf_path).encode("The sea was calm that morning, and").ids])
    first, state = smollm(ids, smollm.initial_state(1, "tova:16"), last_only=True)
    logits, tokens, recorded = first, [], []
    settings = {"do_sample": True, "max_new_tokens": 24, "generator": torch.Generator().manual_seed(0)}
    for step in msrnn.stream(smollm, state=state, logits=logits, **settings):
        tokens.append(step.token)
        recorded.append(logits.double().log_softmax(-1)[0, step.token])
        logits = step.logits
    difference = msrnn.log_probs(smollm, torch.stack(tokens, dim=1), state, logits=first)[0] - torch.cat(recorded)
    assert difference.abs().max() < 1e-4
    figure(f"log-probabilities of SmolLM2 under tova:16 in float32: {float(difference.abs().max()):.1e} from the rollout's")


def test_a_whole_text_has_no_log_prob_of_its_first_token():
    cell, lengths = tiny_cell(), torch.tensor([13, 4])
    found = msrnn.log_probs(cell, TEXT, reduction="tova:5", lengths=lengths)
    assert found.isnan().tolist() == [[True] + [False] * 12, [True] + [False] * 3 + [True] * 9]
    state, expected = cell.initial_state(2, "tova:5"), []
    for t in range(12):
        logits, state = cell.step(TEXT[:, t], state)
        expected.append(logits.log_softmax(-1)[range(2), TEXT[:, t + 1]])
    expected = torch.stack(expected, dim=1)
    assert_close(found[0, 1:], expected[0])
    assert_close(found[1, 1:4], expected[1, :3])
    assert msrnn.log_probs(cell, TEXT[:, :1]).isnan().all()
    assert msrnn.log_probs(cell, TEXT[:, :0]).shape == (2, 0)


def test_gradients_equal_those_of_the_step_loop():
    cell, lengths = tiny_cell(frozen=False), torch.tensor([13, 6])
    first, state = cell(PROMPT[:2], cell.initial_state(2, "tova:5"), last_only=True)
    found = msrnn.log_probs(cell, TEXT, state, logits=first, lengths=lengths, temperature=0.7)
    mask = torch.arange(13) < lengths[:, None]
    total, logits, stepped = torch.zeros((), dtype=torch.float64), first, state
    for t in range(13):
        values = (logits / 0.7).log_softmax(-1)[range(2), TEXT[:, t]]
        total = total + values[mask[:, t]].sum()
        logits, stepped = cell.step(TEXT[:, t], stepped)
    assert_close(found[mask].sum(), total)
    parameters = [*cell.parameters()]
    both = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (found[mask].sum(), total))
    for a, b in zip(*both, strict=True):
        assert_close(a, b, 1e-9)
        assert b.abs().max() > 1e-6


def test_many_calls_give_the_same(monkeypatch):
    cell, lengths = tiny_cell(), torch.tensor([13, 6])
    whole = msrnn.log_probs(cell, TEXT, reduction="h2o:6", lengths=lengths)
    monkeypatch.setattr(module, "MAX_LOGITS", 250)
    assert_close(msrnn.log_probs(cell, TEXT, reduction="h2o:6", lengths=lengths), whole, 1e-12)


def test_sixteen_bits_give_float32():
    assert msrnn.log_probs(tiny_cell(dtype=torch.bfloat16), TEXT).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"logits": torch.zeros(2, 3)}, "logits are float32 of shape (2, 3); expected the logits of the first token, (2, 50)"),
        ({"logits": torch.zeros(2, 50, device="meta")}, "logits are on meta; expected cpu, as the cell"),
        ({"lengths": torch.tensor([14, 1])}, "lengths are [14, 1]; expected 0 to 13"),
        ({"state": tiny_cell().initial_state(2), "reduction": "full"}, "state and reduction are both given; expected one"),
        ({"state": tiny_cell().initial_state(3)}, "state has batch size 3; the tokens have 2"),
        ({"reduction": "tofa:5"}, "no operator is called 'tofa'"),
    ],
)
def test_refusals(settings, message):
    with refusing(message):
        msrnn.log_probs(tiny_cell(), TEXT, **settings)
    with refusing("token id 50 is outside the vocabulary of 50"):
        msrnn.log_probs(tiny_cell(), torch.full((1, 2), 50))

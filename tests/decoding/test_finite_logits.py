"""NaN and infinity in weights or logits are refused in one sentence by every way of decoding."""

import pytest
import torch
from support.tiny_models import random_tokens, tiny_cell
from support.tiny_tokenizer import TEMPLATES, chat_cell

import msrnn
from msrnn.cli.main import main
from msrnn.decoding.finite_logits import FiniteLogits
from msrnn.decoding.sampling import make_sampler

TEXT = random_tokens(1, 2, 6)
DECODE = {
    "generate": lambda cell, **settings: msrnn.generate(cell, TEXT, **settings),
    "stream": lambda cell, **settings: list(msrnn.stream(cell, TEXT, **settings)),
    "lookahead": lambda cell, **settings: msrnn.lookahead(cell, TEXT, **settings),
    "jacobi": lambda cell, **settings: msrnn.jacobi(cell, TEXT, **settings),
}
SETTINGS = {"greedy": {}, "sampled": {"do_sample": True}, "top-k and top-p": {"do_sample": True, "top_k": 5, "top_p": 0.9}}


def damaged(where: str, value: float):
    cell = tiny_cell(dtype=torch.float32)
    if where == "a token that is generated":
        read = torch.zeros(50, dtype=torch.bool).scatter(0, TEXT.flatten(), True)
        cell.embed.weight[~read, 3] = value  # the logits after the prompt are finite
        generator = torch.Generator().manual_seed(0)
        assert not read[msrnn.generate(cell, TEXT, max_new_tokens=1, do_sample=True, generator=generator).tokens].all()
    else:
        cell.get_parameter(where)[3] = value
    return cell


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["layers.0.down.weight", "norm.weight", "head.weight", "a token that is generated"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("decode", DECODE.values(), ids=DECODE)
def test_damaged_weights_are_refused(decode, settings, where, value):
    with pytest.raises(msrnn.Error, match=r"^the largest logit of row \d is (nan|inf); expected a finite number"):
        decode(damaged(where, value), max_new_tokens=5, **settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_of_the_caller_are_checked(settings):
    cell = tiny_cell()
    logits, state = cell(TEXT, last_only=True)
    logits[1, 7] = torch.nan
    with pytest.raises(msrnn.Error, match="largest logit of row 1 is nan"):
        msrnn.generate(cell, state=state, logits=logits, max_new_tokens=1, **settings)
    logits[1] = -torch.inf
    with pytest.raises(msrnn.Error, match="largest logit of row 1 is -inf"):
        msrnn.generate(cell, state=state, logits=logits, max_new_tokens=1, **settings)
    logits[1, 4] = 0  # all other tokens are excluded
    assert msrnn.generate(cell, state=state, logits=logits, max_new_tokens=1, **settings).tokens[1].tolist() == [4]


@pytest.mark.parametrize("sampling", [[], ["--sample"]])
def test_command_line_refuses_a_damaged_model(sampling, tmp_path, capsys):
    cell = chat_cell(TEMPLATES["ChatML"], 1)
    cell.layers[0].down.weight[3] = torch.nan
    cell.save(tmp_path / "cell")
    assert main(["generate", str(tmp_path / "cell"), "--prompt", "the end", "--max-new-tokens", "4", *sampling]) == 1
    _, err = capsys.readouterr()
    assert "msrnn: the largest logit of row 0 is nan" in err


class OnAnAccelerator(torch.Tensor):
    """A tensor that names another device than the CPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_an_accelerator_logits_are_only_read_by_verify(settings):
    sampler, good = make_sampler(**settings), torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[1, 2] = torch.nan
    for logits in (good, bad, good):
        token = sampler(logits.as_subclass(OnAnAccelerator))
        assert ((token >= 0) & (token < 9)).all()
    with pytest.raises(msrnn.Error, match="largest logit of row 1 is nan"):
        sampler.verify()
    sampler.choose(good.as_subclass(OnAnAccelerator))


def test_verify_of_nothing_passes():
    FiniteLogits().verify()

"""Meta's and Mistral's own folders: facts, refusals, and the shapes of what was published."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_checkpoints import (
    interleave,
    make_checkpoint,
    meta_params,
    mistral_params,
    pth_files,
    split_model_parallel,
    to_meta,
    write_folder,
)

import converters
import msrnn
from converters.fields import Fields
from converters.formats import mistral
from converters.row_order import half_split
from msrnn.layers.rotary import Llama3, Rope, rotate


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tensors by Meta's names and config.json, of a tiny LLaMA."""
    _, state, facts = make_checkpoint("gqa", tmp_path_factory.mktemp("hf") / "hf")
    return to_meta(state, facts), facts


def meta(path, tiny, change=None, **more):
    tensors, facts = tiny
    said = {k: v for k, v in meta_params(facts, **more).items() if v is not ...}
    return write_folder(path, {"params.json": said, **pth_files(change or [tensors])})


# The order of rows.


@pytest.mark.parametrize(("heads", "half"), [(1, 2), (4, 3), (3, 4)])
def test_half_split_is_transformers_formula(heads, half):
    """``permute`` of convert_llama_weights_to_hf.py, as it stands there."""
    w = torch.randn(heads * 2 * half, 7)
    dim1, dim2 = w.shape
    assert torch.equal(half_split(w, heads), w.view(heads, dim1 // heads // 2, 2, dim2).transpose(1, 2).reshape(dim1, dim2))
    assert torch.equal(half_split(interleave(w, heads), heads), w)


def test_half_split_turns_as_metas_code_turns():
    """llama/model.py, ``apply_rotary_emb``: pairs (2i, 2i + 1) as complex numbers."""
    w, x, rope, position = torch.randn(2 * 6, 5).double(), torch.randn(5).double(), Rope(50.0), torch.tensor([7])
    angle = 7 * 50.0 ** -(torch.arange(0, 6, 2).double() / 6)
    turned = torch.view_as_complex((w @ x).view(2, 3, 2)) * torch.polar(torch.ones(3).double(), angle)
    ours = rotate((half_split(w, 2) @ x).view(1, 2, 6), rope.rotation(position, 6, torch.float64))
    torch.testing.assert_close(ours[0], torch.cat((turned.real, turned.imag), dim=-1))


# Facts.


def test_what_meta_leaves_out_comes_from_shapes_and_generation(tiny, tmp_path):
    config = converters.config(meta(tmp_path / "a", tiny, max_seq_len=..., rope_theta=..., n_layers=..., n_kv_heads=...))
    assert (config.n_layers, config.ffn_width, config.vocab_size, config.rope) == (2, 40, 60, Rope(10000.0))
    assert (config.n_kv_heads, config.length, config.bos_token_id, config.eos_token_ids) == (4, 4096, 1, (2,))
    lengths = {"1": {"norm_eps": 1e-6, "rope_theta": ...}, "3": {"rope_theta": 5e5}, "code": {"rope_theta": 1e6}}
    found = {k: converters.config(meta(tmp_path / k, tiny, max_seq_len=..., **more)).length for k, more in lengths.items()}
    assert found == {"1": 2048, "3": 8192, "code": 16384}


def test_scaled_rope(tiny, tmp_path):
    said = {"use_scaled_rope": True, "rope_theta": 5e5, "max_seq_len": ...}
    with pytest.raises(msrnn.Error, match=r"use_scaled_rope is true, but the factor is missing, .* 2 layers of width 24"):
        converters.load(meta(tmp_path / "unsaid", tiny, **said))
    config = converters.config(meta(tmp_path / "said", tiny, rope_scaling_factor=8, **said))
    assert (config.rope, config.length) == (Llama3(5e5, 8.0, 1.0, 4.0, 8192), 131072)


@pytest.mark.parametrize(("stored", "tied"), [("none", True), ("equal", True), ("other", False)])
@pytest.mark.parametrize("n", [1, 2])
def test_a_head_that_is_the_embedding_is_tied(stored, tied, n, tiny, tmp_path):
    """Llama 3.2 stores both; cut along the vocabulary, as the head is."""
    tensors = dict(tiny[0])
    head = tensors.pop("output.weight")
    if stored != "none":
        tensors["output.weight"] = head if stored == "other" else tensors["tok_embeddings.weight"].clone()
    cell = converters.load(meta(tmp_path / "x", tiny, split_model_parallel(tensors, n, 0)))
    assert cell.config.tied == tied
    assert torch.equal(cell.embed.weight, tensors["tok_embeddings.weight"])


def test_mistral_says_its_window_and_v01_its_theta():
    """facts of the published params.json: v0.1 has a window and no theta, v0.2 and v0.3 a theta and no window."""
    said = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5}
    published = {
        "MISTRAL_7B_V01": {"vocab_size": 32000, "sliding_window": 4096},
        "MISTRAL_7B_V02": {"vocab_size": 32000, "rope_theta": 1e6},
        "MISTRAL_7B_V03": {"vocab_size": 32768, "rope_theta": 1e6},
    }
    for name, more in published.items():
        assert mistral.config_from_params(Fields(said | more, "params.json")) == getattr(msrnn.models, name)
    assert (
        mistral.config_from_params(Fields(said | {"vocab_size": 32000, "sliding_window": "4096"}, "params.json")).window == 4096
    )


# Refusals.

META_REFUSED = {
    "vision": ({"vision_chunk_size": 448}, "vision_chunk_size is 448, which this library does not know"),
    "lora": ({"lora_args": {"rank": 16}}, "lora_args"),
    "no width": ({"dim": ...}, "dim is missing"),
    "no heads": ({"n_heads": "4"}, "n_heads is '4'"),
    "width": ({"dim": 25}, "dim 25 is no multiple of n_heads 4"),
    "layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; expected at most"),
    "more layers than tensors": ({"n_layers": 40}, "n_layers is 40; expected at most"),
    "vocabulary": ({"vocab_size": 61}, "shape"),
    "eps": ({"norm_eps": None}, "norm_eps is missing"),
    "theta": ({"rope_theta": "big"}, "rope_theta is 'big'"),
    "groups": ({"n_kv_heads": 3}, "cannot share"),
}


@pytest.mark.parametrize(("more", "said"), META_REFUSED.values(), ids=META_REFUSED)
def test_metas_facts_are_refused_by_name(more, said, tiny, tmp_path):
    with pytest.raises(msrnn.Error, match=said):
        converters.load(meta(tmp_path / "x", tiny, **more))


MISTRAL_REFUSED = {
    "moe": ({"moe": {"num_experts": 8}}, "moe is"),
    "lora": ({"lora": {"rank": 64}}, "lora is"),
    "windows": ({"sliding_window": [4096, None]}, "sliding_window is"),
    "width": ({"dim": 0}, "dim is 0"),
    "kv": ({"n_kv_heads": None}, "n_kv_heads is missing"),
    "layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; expected at most"),
    "more layers than tensors": ({"n_layers": 40}, "n_layers is 40; expected at most"),
    "ffn": ({"hidden_dim": 41}, "shape"),
}


@pytest.mark.parametrize(("more", "said"), MISTRAL_REFUSED.values(), ids=MISTRAL_REFUSED)
def test_mistrals_facts_are_refused_by_name(more, said, tiny, tmp_path):
    tensors, facts = tiny
    said_ = mistral_params({**facts, "sliding_window": None}, head_dim=6) | more
    with pytest.raises(msrnn.Error, match=said):
        converters.load(write_folder(tmp_path / "x", {"params.json": said_, "consolidated.safetensors": tensors}))


Q, NORM = "layers.0.attention.wq.weight", "layers.1.ffn_norm.weight"
PIECES_REFUSED = {
    "bias": (lambda a, b: [p.update({"layers.0.attention.wq.bias": torch.zeros(12)}) for p in (a, b)], "wq.bias"),
    "adapter": (lambda a, b: [p.update({"layers.0.attention.wq.lora_A.weight": torch.zeros(2)}) for p in (a, b)], "lora_A"),
    "one has more": (lambda a, b: b.update({"x.weight": torch.zeros(1)}), r"disagree about tensor 'x.weight'"),
    "one has less": (lambda a, b: b.pop(Q), "disagree about tensor"),
    "shapes": (lambda a, b: b.update({Q: b[Q][:-1].clone()}), r"the parts of tensor 'layers.0.attention.wq.weight' are"),
    "types": (lambda a, b: b.update({Q: b[Q].bfloat16()}), "expected equal shapes and types"),
    "norms": (lambda a, b: b[NORM].mul_(2), r"parts of tensor 'layers.1.ffn_norm.weight' differ"),
    "head twice": (lambda a, b: [p.update({Q: torch.zeros(24, 24)}) for p in (a, b)], r"shape \(48, 24\)"),
}


@pytest.mark.parametrize(("change", "said"), PIECES_REFUSED.values(), ids=PIECES_REFUSED)
def test_pieces_that_do_not_fit_are_refused(change, said, tiny, tmp_path):
    files = split_model_parallel(tiny[0], 2, 1)
    change(*files)
    with pytest.raises(msrnn.Error, match=said):
        converters.load(meta(tmp_path / "x", tiny, files))


def test_a_missing_piece_is_noticed(tiny, tmp_path):
    folder = meta(tmp_path / "x", tiny, split_model_parallel(tiny[0], 4, 1))
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(msrnn.Error, match=r"consolidated\.01\.pth is missing"):
        converters.load(folder)
    for n in (2, 3):
        (folder / f"consolidated.{n:02}.pth").unlink()
    with pytest.raises(msrnn.Error, match="shape"):  # of the first alone nothing fits
        converters.load(folder)


def test_stored_rotary_tables_are_let_pass(tiny, tmp_path):
    files = [{**piece, "rope.freqs": torch.ones(3)} for piece in split_model_parallel(tiny[0], 2, 1)]
    assert converters.load(meta(tmp_path / "x", tiny, files)).config.n_layers == 2


# Whose folder it is.


def test_what_is_preferred_and_what_is_nobodys(tiny, tmp_path):
    hf = tmp_path / "hf"
    _, state, facts = make_checkpoint("gqa", hf)
    other = {name: torch.zeros_like(x) for name, x in tiny[0].items()}
    write_folder(hf, {"params.json": meta_params(facts), "consolidated.00.pth": other, "consolidated.safetensors": other})
    torch.save({name: torch.zeros_like(x) for name, x in state.items()}, hf / "pytorch_model.bin")
    assert converters.load(hf).norm.weight.any()  # Hugging Face's safetensors
    (hf / "model.safetensors").unlink()
    save_file(tiny[0], hf / "consolidated.safetensors")
    assert converters.load(hf).norm.weight.any()  # no pickle where there are safetensors
    (hf / "consolidated.safetensors").unlink()
    torch.save(state, hf / "pytorch_model.bin")
    assert converters.load(hf).norm.weight.any()
    (hf / "pytorch_model.bin").unlink()
    assert not converters.load(hf).norm.weight.any()
    (hf / "params.json").unlink()
    wanted = "expected config.json and model.safetensors or pytorch_model.bin .or an index of shards., or params.json and"
    with pytest.raises(msrnn.Error, match=f"hf holds config.json, consolidated.00.pth, generation_config.json; {wanted}"):
        converters.load(hf)
    (tmp_path / "empty").mkdir()
    with pytest.raises(msrnn.Error, match="holds nothing; expected"):
        converters.load(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(msrnn.Error, match="is an adapter"):
        converters.load(tmp_path / "empty")


@pytest.mark.parametrize("source", [None, 3, {}, (1, 2), ({}, None), (None, {}), torch.nn.Linear(2, 2)])
def test_what_is_no_source_is_refused(source):
    for call in (converters.load, converters.config, lambda x: converters.convert(x, "never")):
        with pytest.raises(msrnn.Error, match=r"source is .*; expected a hub id"):
            call(source)
    with pytest.raises(msrnn.Error, match="carries no tokenizer"):
        converters.tokenizer(source)


# What was published, on the meta device.

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"]}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
SCALED = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WINDOW = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}
PUBLISHED = {
    "LLAMA_2_7B": ((4096, 11008, 32, 32, 32, 32000), {"max_position_embeddings": 4096}, 6_738_415_616),
    "LLaMA-2-70B": ((8192, 28672, 80, 64, 8, 32000), {"max_position_embeddings": 4096}, 68_976_648_192),
    "LLAMA_31_8B": (
        (4096, 14336, 32, 32, 8, 128256),
        {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {**SCALED, "factor": 8.0}},
        8_030_261_248,
    ),
    "LLAMA_32_1B": (
        (2048, 8192, 16, 32, 8, 128256),
        {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {**SCALED, "factor": 32.0}, "head_dim": 64}
        | {"tie_word_embeddings": True},
        1_235_814_400,
    ),
    "MISTRAL_7B_V01": (
        (4096, 14336, 32, 32, 8, 32000),
        {**WINDOW, "rope_theta": 10000.0, "sliding_window": 4096},
        7_241_732_096,
    ),
    "MISTRAL_7B_V03": ((4096, 14336, 32, 32, 8, 32768), {**WINDOW, "rope_theta": 1e6, "sliding_window": None}, 7_248_023_552),
    "YI_6B": ((4096, 11008, 32, 32, 4, 64000), {"rope_theta": 5e6, "max_position_embeddings": 4096}, 6_061_035_520),
    "Yi-34B": ((7168, 20480, 60, 56, 8, 64000), {"rope_theta": 5e6, "max_position_embeddings": 4096}, 34_388_917_248),
}


@pytest.mark.parametrize(("name", "sizes", "more", "count"), [(k, *v) for k, v in PUBLISHED.items()], ids=PUBLISHED)
def test_names_and_shapes_of_the_published_models(name, sizes, more, count):
    """transformers' own model on the meta device has the tensors that the cell wants, and as many numbers as published."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from converters.formats.huggingface import config_from_hf, tensors_from_hf
    from msrnn.models.loading import check_tensors
    from msrnn.storage.lazy_tensors import LazyTensor

    facts = {**LLAMA, **dict(zip(SIZES, sizes, strict=True)), **more}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts), dtype=torch.bfloat16)
    assert sum(x.numel() for x in model.parameters()) == count
    config = config_from_hf(facts, {})
    tensors = tensors_from_hf({name: LazyTensor.of(x) for name, x in model.state_dict().items()}, False, config.tied)
    assert check_tensors(config, tensors) == torch.bfloat16
    assert sum(torch.Size(x.shape).numel() for x in tensors.values()) == count
    preset = getattr(msrnn.models, name, None)
    if preset is not None:
        named = {"family": preset.family, "bos_token_id": preset.bos_token_id, "eos_token_ids": preset.eos_token_ids}
        assert converters.config(({}, replace(config, **named))) == preset
    else:
        assert name in ("LLaMA-2-70B", "Yi-34B")


def test_yi_is_read_from_its_first_name(tmp_path):
    sizes, more, _ = PUBLISHED["YI_6B"]
    facts = {**LLAMA, **dict(zip(SIZES, sizes, strict=True)), **more, "model_type": "Yi", "architectures": ["YiForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps({**facts, "bos_token_id": 1, "eos_token_id": 2}))
    assert converters.config(tmp_path) == msrnn.models.YI_6B

"""Writers of a tiny checkpoint in every format, with other packages where possible."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support import tiny_checkpoints
from support.gguf_files import to_gguf
from support.packed_models import SHAPES
from support.tiny_models import random_tokens, tiny_cell

import converters
from msrnn import H2O, TOVA, Full, Sinks, Window
from msrnn.layers.rotary import DynamicNTKRope, Llama3Rope, Rope, YarnRope
from msrnn.models import Llama

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope": Llama3Rope(500000.0, 8.0, 1.0, 4.0, 8192), "eos_token_ids": (2, 3)},
    "tied": {"rope": DynamicNTKRope(100.0, 2.0, 64), "tied": True},
    "mistral": {"rope": Rope(1000.0), "family": "mistral", "sliding_window": 5, "eos_token_ids": (2,)},
    "yi": {"rope": YarnRope(100.0, 4.0, 16, 1.1, 2.0, 0.5), "family": "yi", "bos_token_id": 1},
}
STATES = {"llama": [H2O(4), TOVA(3)], "tied": [Full(), Window(5)], "mistral": None, "yi": [Sinks(5, 2), H2O(6, 2, False)]}
PIECES = ["<unk>", "<s>", "</s>", "▁", *"etaoinshrdlucmfwypvbgkjqxz", *"0123456789"]
PAIRS = ["th", "he", "in", "er", "an", "re", "on", "at", "nd", "st"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def cell(model: str) -> Llama:
    dtype = torch.bfloat16 if model == "tied" else torch.float32
    return tiny_cell(dtype=dtype, **MODELS[model])


def small_files(model: str) -> dict[str, str]:
    """Return the small files of a published folder: tokenizer, chat template, generation config."""
    import tokenizers

    merges = [tuple(pair) for pair in PAIRS]
    vocab = {piece: n for n, piece in enumerate([*PIECES, *PAIRS])}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    bpe.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    bpe.decoder = tokenizers.decoders.Replace("▁", " ")
    bpe.add_special_tokens(PIECES[:3])
    generation = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "do_sample": True, "top_p": 0.9}
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "additional_special_tokens": ["<unk>"]}
    decoder = {str(n): {"content": piece, "special": True} for n, piece in enumerate(PIECES[:3])}
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    settings |= {"add_bos_token": model != "yi", "added_tokens_decoder": decoder, "model_max_length": 10**30}
    templates = {  # in the places and forms of several versions of transformers
        "llama": {},
        "tied": {"chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}]},
        "mistral": {"chat_template": TEMPLATE},
        "yi": {"chat_template": {"default": TEMPLATE}},
    }
    texts = {
        "tokenizer.json": bpe.to_str(),
        "generation_config.json": json.dumps(generation),
        "special_tokens_map.json": json.dumps(special),
        "added_tokens.json": json.dumps({"<pad>": len(PIECES) + len(PAIRS)}),
        "tokenizer_config.json": json.dumps(settings | templates[model]),
    }
    if model == "yi":
        texts["chat_template.json"] = json.dumps({"chat_template": TEMPLATE})
    return texts | ({"chat_template.jinja": TEMPLATE} if model == "llama" else {})


def write_own(folder: Path, model: str) -> None:
    """Write the library's own folder."""
    built, kept = cell(model), ("tokenizer.json", "chat_template.jinja")
    built.extra_files = {name: text.encode() for name, text in small_files(model).items() if name in kept}
    built.save(folder)


def write_packed(folder: Path, model: str) -> None:
    """Write the library's own folder with packed weights: matrices of the layers in 4 bits, or all in 8."""
    built = tiny_cell(dtype=torch.float32, **MODELS[model], **SHAPES)
    weights = "int4" if model in ("llama", "tied") else "int8"
    converters.load((built.state_dict(), built.config), weights=weights).save(folder)


def write_single(folder: Path, model: str, max_shard_size: str = "5GB") -> None:
    """Write a Hugging Face folder with transformers, which has no Yi."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    from converters.formats.hf_config import config_to_hf
    from converters.formats.hf_families.family import NAMES

    built = cell(model)
    config = config_to_hf(built.config, built.norm.weight.dtype)
    make_config, make = (MistralConfig, MistralForCausalLM) if model == "mistral" else (LlamaConfig, LlamaForCausalLM)
    reference = make(make_config(**config)).to(built.norm.weight.dtype)
    reference.load_state_dict({NAMES.from_msrnn(name): x for name, x in built.state_dict().items()}, strict=model != "tied")
    reference.save_pretrained(folder, max_shard_size=max_shard_size)
    for name, text in small_files(model).items():
        (folder / name).write_text(text)
    if model == "yi":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "Yi", "architectures": ["YiForCausalLM"]}))


def write_sharded(folder: Path, model: str) -> None:
    """Write a Hugging Face folder with shards of 20 KB."""
    write_single(folder, model, "20KB")


def write_gguf(folder: Path, model: str) -> None:
    """Write a GGUF file with the gguf package; the tokenizer is SentencePiece's or byte-level."""
    import gguf

    built = cell(model)
    c, rope = built.config, built.config.rope
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(c.n_layers)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length(c.ffn_width)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_context_length(c.context_length)
    writer.add_vocab_size(c.vocab_size)
    writer.add_rope_freq_base(rope.theta)
    if model == "mistral":
        writer.add_sliding_window(c.sliding_window)
    if model == "yi":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.original_length)
    if model == "llama":
        start = torch.zeros(1, dtype=torch.int64)
        ratio = Rope(rope.theta).frequencies(start, c.head_dim, torch.float64)
        ratio = ratio / rope.frequencies(start, c.head_dim, torch.float64)
        writer.add_tensor("rope_freqs.weight", ratio.float().numpy())
    byte_level = model in ("llama", "tied")
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre("gpt-2" if byte_level else "default")
    writer.add_token_list([*PIECES, *PAIRS])
    writer.add_token_types([2, 3, 3, *[1] * (len(PIECES) + len(PAIRS) - 3)])
    if byte_level:
        writer.add_token_merges([" ".join(pair) for pair in PAIRS])
    else:
        writer.add_token_scores([-float(n) for n in range(len(PIECES) + len(PAIRS))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, values in to_gguf(built.float()).items():
        half = model == "tied" and values.ndim > 1
        writer.add_tensor(name, values.astype("float16") if half else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_bin(folder: Path, model: str, **settings: Any) -> None:
    """Write a Hugging Face folder with a PyTorch file instead of safetensors."""
    write_single(folder, model)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **settings)
    (folder / "model.safetensors").unlink()


def write_old_bin(folder: Path, model: str) -> None:
    """Write the PyTorch file in the format before 1.6: several pickles without a zip."""
    write_bin(folder, model, _use_new_zipfile_serialization=False)


def write_sharded_bin(folder: Path, model: str) -> None:
    """Write a Hugging Face folder with two PyTorch files and an index."""
    write_single(folder, model)
    files = tiny_checkpoints.sharded(load_file(folder / "model.safetensors"), "pytorch_model", ".bin")
    tiny_checkpoints.write_folder(folder, files)
    (folder / "model.safetensors").unlink()


def write_mistral(folder: Path, model: str) -> None:
    """Write Mistral's own folder, with safetensors or, as v0.1, with one pickle."""
    state, config = hugging_face(folder, model)
    params = tiny_checkpoints.mistral_params({"sliding_window": None} | config, head_dim=6)
    tensors = tiny_checkpoints.to_meta(state, config)
    weights = tiny_checkpoints.pth_files([tensors]) if model == "tied" else {"consolidated.safetensors": tensors}
    tiny_checkpoints.write_folder(folder, {"params.json": params, **weights})


def write_meta(folder: Path, model: str) -> None:
    """Write Meta's own folder with one or two files, the embedding split along either axis."""
    state, config = hugging_face(folder, model)
    tensors, axis = tiny_checkpoints.to_meta(state, config), {"llama": 0, "tied": 1}.get(model)
    shards = [tensors] if axis is None else tiny_checkpoints.split_model_parallel(tensors, 2, axis)
    more = {"use_scaled_rope": True, "rope_scaling_factor": 8} if model == "llama" else {}
    tiny_checkpoints.write_folder(
        folder, {"params.json": tiny_checkpoints.meta_params(config, **more), **tiny_checkpoints.pth_files(shards)}
    )


def sentencepiece_model() -> bytes:
    """Return a ``tokenizer.model`` trained on three lines."""
    import sentencepiece

    model, lines = io.BytesIO(), ["the hat in the sea", "an ant on the sand", "a red hat is there"] * 9
    kept = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=290, minloglevel=2, **kept)
    return model.getvalue()


def hugging_face(folder: Path, model: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Write a Hugging Face folder and remove config and weights from it; return the tensors and config.json."""
    write_single(folder, model)
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    if model in ("tied", "yi"):  # older checkpoints have SentencePiece's file
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    if model == "tied":
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    return state, config


def write_state(folder: Path, model: str) -> None:
    """Write a saved state of two rows."""
    built = cell(model)
    _, state = built(random_tokens(3, 2, 9), built.initial_state(2, STATES[model]), lengths=torch.tensor([9, 7]))
    state.save(folder / "state.safetensors")

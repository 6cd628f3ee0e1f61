"""A small checkpoint of every format to damage, written by other people's code where there is some, and what it says.

A format is one entry of ``FORMATS``: how to write it, which file is loaded, how to read it back without this library.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import support.tiny_checkpoints as sources
import torch
from safetensors.torch import load_file
from support.tiny_models import tiny_cell, tokens

import converters
import msrnn
from msrnn import H2O, TOVA, Full, Sinks, Window
from msrnn.layers.rotary import Dynamic, Llama3, Rope, Yarn
from msrnn.models import Llama

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope": Llama3(500000.0, 8.0, 1.0, 4.0, 8192), "eos_token_ids": (2, 3)},
    "tied": {"rope": Dynamic(100.0, 2.0, 64), "tied": True},
    "mistral": {"rope": Rope(1000.0), "family": "mistral", "window": 5, "eos_token_ids": (2,)},
    "yi": {"rope": Yarn(100.0, 4.0, 16, 1.1, 2.0, 0.5), "family": "yi", "bos_token_id": 1},
}
STATES = {"llama": [H2O(4), TOVA(3)], "tied": [Full(), Window(5)], "mistral": None, "yi": [Sinks(5, 2), H2O(6, 2, False)]}
PIECES = ["<unk>", "<s>", "</s>", "▁", *"etaoinshrdlucmfwypvbgkjqxz", *"0123456789"]
PAIRS = ["th", "he", "in", "er", "an", "re", "on", "at", "nd", "st"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
EXTRA_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
Read = tuple[dict[str, Any], dict[str, bytes]]
"""Facts by the name of our config's field (``rope.`` before a rope's), and the bytes of each tensor by our name."""


class Format(NamedTuple):
    write: Callable[[Path, str], None]
    """Into an empty folder, the model of that name."""
    read: Callable[[Path], Read]
    """What stands there now, without any check; the facts that a file leaves out are not in it."""
    source: str = "."


def cell(model: str) -> Llama:
    dtype = torch.bfloat16 if model == "tied" else torch.float32
    return tiny_cell(dtype=dtype, **MODELS[model])


def files(model: str) -> dict[str, str]:
    """What a published folder has beside config and weights."""
    import tokenizers

    merges = [tuple(pair) for pair in PAIRS]
    vocab = {piece: n for n, piece in enumerate([*PIECES, *PAIRS])}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    bpe.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    bpe.decoder = tokenizers.decoders.Replace("▁", " ")
    bpe.add_special_tokens(PIECES[:3])
    texts = {"tokenizer.json": bpe.to_str(), "generation_config.json": json.dumps({"eos_token_id": [2, 3], "top_p": 0.9})}
    if model == "mistral":  # the older place of the template
        return {**texts, "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE, "bos_token": "<s>"})}
    return {**texts, "chat_template.jinja": TEMPLATE}


def write_own(folder: Path, model: str) -> None:
    built, kept = cell(model), ("tokenizer.json", "chat_template.jinja")
    built.extra_files = {name: text.encode() for name, text in files(model).items() if name in kept}
    built.save(folder)


def write_single(folder: Path, model: str, max_shard_size: str = "5GB") -> None:
    """By transformers, which has no Yi and says Mistral's tied head all the same."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    from converters.formats.huggingface import NAMES, config_to_hf

    built = cell(model)
    facts = config_to_hf(built.config, built.norm.weight.dtype)
    make_config, make = (MistralConfig, MistralForCausalLM) if model == "mistral" else (LlamaConfig, LlamaForCausalLM)
    theirs = make(make_config(**facts)).to(built.norm.weight.dtype)
    theirs.load_state_dict({NAMES.from_msrnn(name): x for name, x in built.state_dict().items()}, strict=model != "tied")
    theirs.save_pretrained(folder, max_shard_size=max_shard_size)
    for name, text in files(model).items():
        (folder / name).write_text(text)
    if model == "yi":
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | {"model_type": "Yi", "architectures": ["YiForCausalLM"]}))


def write_sharded(folder: Path, model: str) -> None:
    write_single(folder, model, "20KB")


def write_gguf(folder: Path, model: str) -> None:
    """By the gguf package's writer, tokenizer included: SentencePiece's kind or byte-level."""
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
    writer.add_context_length(c.length)
    writer.add_vocab_size(c.vocab_size)
    writer.add_rope_freq_base(rope.theta)
    if model == "mistral":
        writer.add_sliding_window(c.window)
    if model == "yi":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.length)
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
    kind = gguf.GGMLQuantizationType.F16 if model == "tied" else gguf.GGMLQuantizationType.F32
    for name, x in built.state_dict().items():
        *layer, stem, _ = name.split(".")
        theirs = "".join(f"blk.{n}." for n in layer[1:]) + f"{GGUF_NAMES[stem]}.weight"
        values = x.float()
        if stem in "qk":
            n = c.n_heads if stem == "q" else c.n_kv_heads
            values = values.reshape(n, 2, -1, c.width).swapaxes(1, 2).reshape(values.shape)
        small = values.ndim == 1
        data = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.F32 if small else kind)
        writer.add_tensor(theirs, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_bin(folder: Path, model: str, **settings: Any) -> None:
    """PyTorch's own file in place of safetensors."""
    write_single(folder, model)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **settings)
    (folder / "model.safetensors").unlink()


def write_old_bin(folder: Path, model: str) -> None:
    """As before PyTorch 1.6: no zip, one pickle after another."""
    write_bin(folder, model, _use_new_zipfile_serialization=False)


def write_sharded_bin(folder: Path, model: str) -> None:
    write_single(folder, model)
    files = sources.sharded(load_file(folder / "model.safetensors"), "pytorch_model", ".bin")
    sources.write_folder(folder, files)
    (folder / "model.safetensors").unlink()


def write_mistral(folder: Path, model: str) -> None:
    """Mistral's own folder, as safetensors or, as v0.1, in one pickle."""
    state, facts = hugging_face(folder, model)
    said = sources.mistral_params({"sliding_window": None} | facts, head_dim=6)
    native = sources.to_meta(state, facts)
    weights = sources.pth_files([native]) if model == "tied" else {"consolidated.safetensors": native}
    sources.write_folder(folder, {"params.json": said, **weights})


def write_meta(folder: Path, model: str) -> None:
    """Meta's own folder, whole or in two pieces, cut along either axis of the embedding."""
    state, facts = hugging_face(folder, model)
    native, axis = sources.to_meta(state, facts), {"llama": 0, "tied": 1}.get(model)
    pieces = [native] if axis is None else sources.split_model_parallel(native, 2, axis)
    more = {"use_scaled_rope": True, "rope_scaling_factor": 8} if model == "llama" else {}
    sources.write_folder(folder, {"params.json": sources.meta_params(facts, **more), **sources.pth_files(pieces)})


def sentencepiece_model() -> bytes:
    import sentencepiece

    model, lines = io.BytesIO(), ["the hat in the sea", "an ant on the sand", "a red hat is there"] * 9
    kept = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=290, minloglevel=2, **kept)
    return model.getvalue()


def hugging_face(folder: Path, model: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of the Hugging Face folder; what is left of it are the files that go along."""
    write_single(folder, model)
    state, facts = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    if model in ("tied", "yi"):  # SentencePiece's file lies beside the older ones
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    if model == "tied":
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    return state, facts


def write_state(folder: Path, model: str) -> None:
    built = cell(model)
    _, state = built(tokens(3, 2, 9), built.initial_state(2, STATES[model]), lengths=torch.tensor([9, 7]))
    state.save(folder / "state.safetensors")


# The same, read back by hand.

HF_NAMES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attention_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip
GGUF_NAMES = {
    "embed": "token_embd", "norm": "output_norm", "head": "output",
    "attention_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
OURS = [*(f"layers.{n}.{stem}" for n in (0, 1) for stem in list(HF_NAMES)[3:]), "embed", "norm", "head"]
HF_FACTS = {
    "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim", "intermediate_size": "ffn_width", "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "length", "tie_word_embeddings": "tied", "sliding_window": "window",
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_ids", "rope_theta": "rope.theta",
}  # fmt: skip
HF_ROPE = {
    "rope_theta": "theta", "factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high",
    "original_max_position_embeddings": "length", "attention_factor": "attention_factor", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "truncate": "truncate",
}  # fmt: skip
NATIVE_NAMES = {
    "embed": "tok_embeddings", "norm": "norm", "head": "output",
    "attention_norm": "attention_norm", "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "ffn_norm": "ffn_norm", "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
}  # fmt: skip
NATIVE_FACTS = {
    "dim": "width", "n_layers": "n_layers", "n_heads": "n_heads", "n_kv_heads": "n_kv_heads", "head_dim": "head_dim",
    "hidden_dim": "ffn_width", "norm_eps": "norm_eps", "vocab_size": "vocab_size", "rope_theta": "rope.theta",
    "sliding_window": "window", "max_seq_len": "length", "rope_scaling_factor": "rope.factor",
}  # fmt: skip
GGUF_FACTS = {
    "block_count": "n_layers", "embedding_length": "width", "feed_forward_length": "ffn_width",
    "attention.head_count": "n_heads", "attention.head_count_kv": "n_kv_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps", "context_length": "length", "vocab_size": "vocab_size",
    "rope.freq_base": "rope.theta", "attention.sliding_window": "window", "rope.scaling.factor": "rope.factor",
}  # fmt: skip


def safetensors(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The bytes of each tensor and the text, wherever the header says they are."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    about = header.pop("__metadata__", {})
    return {name: data[start + x["data_offsets"][0] : start + x["data_offsets"][1]] for name, x in header.items()}, about


def theirs(name: str, table: dict[str, str], layer: str) -> str:
    *where, stem = name.split(".")
    return "".join(f"{layer}.{n}." for n in where[1:]) + table[stem] + ".weight"


def read_own(folder: Path) -> Read:
    facts = json.loads((folder / "config.json").read_text())
    facts = {name: value for name, value in facts.items() if name not in ("format", "version")}
    rope = facts.pop("rope")
    facts |= {f"rope.{name}": value for name, value in rope.items() if name != "kind"}
    return facts, safetensors(folder / "model.safetensors")[0]


def read_hf(folder: Path) -> Read:
    said = json.loads((folder / "config.json").read_text())
    if (folder / "generation_config.json").exists():
        said |= {k: v for k, v in json.loads((folder / "generation_config.json").read_text()).items() if k == "eos_token_id"}
    facts = {ours: said[name] for name, ours in HF_FACTS.items() if said.get(name) is not None}
    for settings in (said.get("rope_parameters"), said.get("rope_scaling")):
        facts |= {f"rope.{HF_ROPE[k]}": v for k, v in (settings or {}).items() if k in HF_ROPE and v is not None}
    if said["model_type"] != "mistral":
        facts.pop("window", None)
    stored: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        stored |= safetensors(path)[0]
    for path in folder.glob("*.bin"):
        stored |= {name: raw(x) for name, x in torch.load(path, weights_only=True).items()}
    names = {ours: theirs(ours, HF_NAMES, "model.layers") for ours in OURS}
    return facts, {f"{ours}.weight": stored[name] for ours, name in names.items() if name in stored}


def read_native(folder: Path) -> Read:
    """Meta's and Mistral's; pieces put together by their shapes alone."""
    said = json.loads((folder / "params.json").read_text())
    facts = {ours: said[name] for name, ours in NATIVE_FACTS.items() if said.get(name) not in (None, -1)}
    files = sorted(folder.glob("consolidated.*"))
    pieces = [load_file(x) if x.suffix == ".safetensors" else torch.load(x, weights_only=True) for x in files]
    tensors = {}
    for ours in OURS:
        name, stem = theirs(ours, NATIVE_NAMES, "layers"), ours.split(".")[-1]
        if name in pieces[0]:
            parts = [piece[name] for piece in pieces]
            axis = 1 if stem in ("o", "down") or (stem == "embed" and parts[0].shape[1] != said["dim"]) else 0
            x = torch.cat(parts, axis) if parts[0].ndim == 2 else parts[0]
            if stem in "qk":
                n = facts["n_heads" if stem == "q" else "n_kv_heads"]
                x = x.view(n, -1, 2, x.shape[1]).transpose(1, 2).reshape(x.shape)
            tensors[f"{ours}.weight"] = raw(x)
    return facts, tensors


def raw(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def read_gguf(folder: Path) -> Read:
    import gguf

    reader = gguf.GGUFReader(folder / "model.gguf")
    stored = {t.name: gguf.quants.dequantize(np.array(t.data), t.tensor_type) for t in reader.tensors}
    keys = {f"llama.{key}": ours for key, ours in GGUF_FACTS.items()}
    facts = {ours: reader.fields[key].contents() for key, ours in keys.items() if key in reader.fields}
    tensors = {}
    for ours in OURS:
        name = theirs(ours, GGUF_NAMES, "blk")
        if name in stored:
            x, stem = stored[name], ours.split(".")[-1]
            if stem in "qk":
                n = facts["n_heads" if stem == "q" else "n_kv_heads"]
                x = x.reshape(n, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
            tensors[f"{ours}.weight"] = np.ascontiguousarray(x).tobytes()
    return facts, tensors


def read_state(folder: Path) -> Read:
    tensors, about = safetensors(folder / "state.safetensors")
    return {"operators": json.loads(about["operators"]), **json.loads(about["cell"])}, tensors


FORMATS = {
    "own": Format(write_own, read_own),
    "hf": Format(write_single, read_hf),
    "hf-sharded": Format(write_sharded, read_hf),
    "bin": Format(write_bin, read_hf),
    "bin-sharded": Format(write_sharded_bin, read_hf),
    "bin-old": Format(write_old_bin, read_hf),
    "mistral": Format(write_mistral, read_native),
    "meta": Format(write_meta, read_native),
    "gguf": Format(write_gguf, read_gguf, "model.gguf"),
    "state": Format(write_state, read_state, "state.safetensors"),
}


def load(name: str, folder: Path) -> Any:
    """A cell, or a state."""
    source = folder / FORMATS[name].source
    return msrnn.load_state(source) if name == "state" else converters.load(source)

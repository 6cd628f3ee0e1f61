"""Hugging Face folders in and out: bit-exact, and refused by name where they are something else."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.transformers_reference import ROPES, TINY, saved, tiny_reference

import converters
import msrnn
from converters.formats.huggingface import config_from_hf, config_to_hf

FACTS = {
    **{"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "num_key_value_heads": 2, "eos_token_id": 2},
    **TINY,
}
MISTRAL = {**FACTS, "model_type": "mistral"}


def bits(folder):
    return {name: x.view(torch.uint8) for name, x in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "facts"), [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("mistral", {})])
def test_there_and_back_is_bit_exact(kind, facts, dtype, tmp_path):
    model = tiny_reference(kind, dtype=dtype, **facts)
    source = saved(model, tmp_path / "source")
    converters.convert(source, tmp_path / "own")
    converters.convert(tmp_path / "own", tmp_path / "back", to="hf")
    there, back = bits(source), bits(tmp_path / "back")
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    again = type(model).from_pretrained(tmp_path / "back")
    assert again.dtype == dtype
    for name in FACTS.keys() | {"rope_parameters", "sliding_window"} - {"eos_token_id"}:
        assert getattr(again.config, name, None) == getattr(model.config, name, None), name
    tokens = torch.randint(0, 61, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(type(model).from_pretrained(source)(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_both_spellings_of_the_rope_settings_are_one(rope):
    new = config_from_hf(FACTS | {"rope_parameters": rope}, {})
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    old = config_from_hf(FACTS | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}, {})
    legacy = {"type" if k == "rope_type" else k: v for k, v in scaling.items()}
    older = config_from_hf(FACTS | {"rope_theta": rope["rope_theta"], "rope_scaling": legacy}, {})
    assert new == old == older
    assert config_from_hf(config_to_hf(new, torch.float32), {}) == new


def test_absent_facts_are_what_the_published_models_mean():
    plain = config_from_hf({k: v for k, v in FACTS.items() if k != "num_key_value_heads"}, {})
    assert (plain.n_kv_heads, plain.rope.theta, plain.tied, plain.window, plain.head_dim) == (4, 10000.0, False, None, 6)
    assert config_from_hf(MISTRAL, {}).window == 4096  # v0.1's config.json may leave out what is the default
    assert config_from_hf(MISTRAL | {"sliding_window": None}, {}).window is None


def test_generation_config_knows_all_eos_ids():
    assert config_from_hf(FACTS, {"eos_token_id": [3, 5, 7]}).eos_token_ids == (3, 5, 7)
    assert config_from_hf(FACTS, {}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": None}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wobble": 1}}, "wobble"),
        ({"rope_scaling": "linear"}, "rope settings"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 6.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"rope_theta": float("nan")}, "theta"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 25}, "hidden_size 25"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 3, "hidden_size": 24}, "3 query heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"eos_token_id": 61}, "61"),
        ({"vocab_size": 61.5}, "vocab_size"),
    ],
)
def test_what_this_library_is_not_is_refused_by_name(facts, said):
    with pytest.raises(msrnn.Error, match=said):
        config_from_hf(FACTS | facts, {})


def test_mistral_says_its_key_value_heads():
    with pytest.raises(msrnn.Error, match="num_key_value_heads"):
        config_from_hf({k: v for k, v in MISTRAL.items() if k != "num_key_value_heads"}, {})


# Tensors.


def edited(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


Q = "model.layers.0.self_attn.q_proj.weight"
WRONG = {
    "missing": (lambda t: t.pop(Q), "layers.0.q.weight"),
    "extra": (
        lambda t: t.update({"model.layers.7.mlp.up_proj.weight": t["model.layers.0.mlp.up_proj.weight"].clone()}),
        "layers.7",
    ),
    "bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(24)}), "q_proj.bias"),
    "unknown": (lambda t: t.update({"model.layers.0.self_attn.rope.weight": torch.zeros(2)}), "self_attn.rope"),
    "misshapen": (lambda t: t.update({Q: t[Q][:-1].clone()}), "shape"),
    "integers": (lambda t: t.update({Q: t[Q].to(torch.int8)}), "int8"),
    "mixed": (lambda t: t.update({Q: t[Q].bfloat16()}), "several dtypes"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_wrong_tensors_are_refused_and_nothing_is_left(change, said, tmp_path):
    folder = edited(saved(tiny_reference(dtype=torch.float32), tmp_path / "source"), change)
    with pytest.raises(msrnn.Error, match=said):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_mixed_types_load_where_one_is_said(tmp_path):
    folder = edited(saved(tiny_reference(dtype=torch.float32), tmp_path), WRONG["mixed"][0])
    assert converters.load(folder, dtype=torch.bfloat16).layers[0].q.weight.dtype == torch.bfloat16


def test_stored_rotary_tables_and_an_equal_tied_head_are_let_pass(tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model = tiny_reference(dtype=torch.float32, tie_word_embeddings=True)
    assert not hasattr(converters.load(edited(saved(model, tmp_path), add)), "head")
    edited(tmp_path, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(msrnn.Error, match=r"lm_head\.weight"):
        converters.load(tmp_path)


# Shards.


@pytest.fixture
def sharded(tmp_path):
    model = tiny_reference(dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    saved(model, tmp_path / "single")
    return tmp_path / "sharded"


def test_shards_are_the_single_file(sharded):
    a, b = converters.load(sharded).state_dict(), converters.load(sharded.with_name("single")).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def index_lies(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


LIES = {
    "outside": (lambda m: m.update({Q: "../single/model.safetensors"}), "not the name"),
    "absent file": (lambda m: m.update({Q: "model-9.safetensors"}), "missing"),
    "left out": (lambda m: m.pop(Q), "disagree"),
    "made up": (lambda m: m.update({"made.up": m[Q]}), r"made\.up"),
    "no name": (lambda m: m.update({Q: 5}), "weight_map"),
}


@pytest.mark.parametrize(("change", "said"), LIES.values(), ids=LIES)
def test_an_index_that_lies_is_refused(change, said, sharded):
    index_lies(sharded, change)
    with pytest.raises(msrnn.Error, match=said):
        converters.load(sharded)


# Sources and targets.


def test_truncated_and_absent_files_are_refused(tmp_path):
    folder = saved(tiny_reference(dtype=torch.float32), tmp_path / "source")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(msrnn.Error, match="safetensors"):
        converters.load(folder)
    weights.unlink()
    with pytest.raises(msrnn.Error, match=r"holds config\.json, generation_config\.json; expected config\.json and model"):
        converters.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(msrnn.Error, match="not JSON"):
        converters.load(folder)


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "/nowhere/at/all", "x.gguf"])
def test_a_source_that_is_nothing_is_refused(source):
    with pytest.raises(msrnn.Error, match="does not exist"):
        converters.load(source)


def test_a_target_that_exists_is_left_alone(tmp_path):
    folder = saved(tiny_reference(dtype=torch.float32), tmp_path / "source")
    before = sorted(os.listdir(folder))
    for to in ("msrnn", "hf"):
        with pytest.raises(msrnn.Error, match="exists already"):
            converters.convert(folder, folder, to=to)
    with pytest.raises(msrnn.Error, match="expected 'msrnn' or 'hf'"):
        converters.convert(folder, tmp_path / "new", to="gguf")
    assert sorted(os.listdir(folder)) == before
    assert os.listdir(tmp_path) == ["source"]


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    folder = saved(tiny_reference(dtype=torch.float32), tmp_path / "source")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converters, "write_model_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_a_hub_id_is_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    """huggingface-hub's own layout, made by hand: refs/main names a snapshot."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    snapshot = home / "models--someone--tiny" / "snapshots" / ("a" * 40)
    model = saved(tiny_reference(dtype=torch.float32), snapshot)
    (home / "models--someone--tiny" / "refs").mkdir()
    (home / "models--someone--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(home))
    cell = converters.load("someone/tiny")
    own = converters.load(model)
    assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), own.parameters(), strict=True))
    assert converters.load("someone/tiny", revision="a" * 40).config == own.config
    for id, revision in (("someone/absent", None), ("someone/tiny", "v9")):
        with pytest.raises(msrnn.Error, match=id):
            converters.load(id, revision=revision)


def test_a_revision_belongs_to_a_hub_id(tmp_path):
    with pytest.raises(msrnn.Error, match="revision"):
        converters.load(saved(tiny_reference(), tmp_path), revision="main")


def test_only_what_is_needed_is_fetched(monkeypatch, tmp_path):
    """The patterns against the files of a real repository (meta-llama's, mistralai's, 01-ai's)."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    facts = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    facts += ["params.json", "tokenizer.model"]
    kinds = [
        ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00003.safetensors"],
        ["consolidated.safetensors"],
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
        ["consolidated.00.pth", "consolidated.01.pth"],
    ]
    others = ["README.md", "original/consolidated.00.pth", "original/params.json", "original/model.safetensors"]
    others += ["flax_model.msgpack", "onnx/model.onnx", ".gitattributes", "training_args.bin", "optimizer.pt"]
    there, asked = [], []

    def download(id, revision, allow_patterns):
        asked.append(revision)
        for name in filter_repo_objects(there, allow_patterns=allow_patterns):
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for n in range(len(kinds)):  # of several kinds the first alone
        there = [*facts, *others, *(name for kind in kinds[n:] for name in kind)]
        folder = tmp_path / str(n)
        folder.mkdir()
        converters.hub.fetch("a/b", "v1")
        assert sorted(os.listdir(folder)) == sorted(facts + kinds[n])
    (tmp_path / "few").mkdir()
    folder = tmp_path / "few"
    converters.hub.fetch("a/b", "v1", weights=False)
    assert sorted(os.listdir(folder)) == sorted(facts)
    assert set(asked) == {"v1"}


def test_tokenizer_and_chat_template_go_along(hf_folder, tmp_path):
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes((hf_folder / name).read_bytes())
    model = tiny_reference(dtype=torch.float32, vocab_size=49152)
    saved(model, tmp_path / "source")
    converters.convert(tmp_path / "source", tmp_path / "own")
    msrnn.load(tmp_path / "own").save(tmp_path / "own2")
    converters.convert(tmp_path / "own2", tmp_path / "back", to="hf")
    text = "The sea, 1851: <|im_start|>世界 naïve\n\tdef f(x):"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs(text)["input_ids"] == converters.tokenizer(hf_folder).encode(text).ids
    assert theirs.chat_template == (hf_folder / "chat_template.jinja").read_text()


def test_command_line(tmp_path, capsys):
    from converters.__main__ import main

    source = saved(tiny_reference(dtype=torch.float32), tmp_path / "source")
    assert main([str(source), str(tmp_path / "out"), "--to", "hf", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[Q].dtype == torch.bfloat16
    assert main([str(source), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err

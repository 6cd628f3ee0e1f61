"""transformers as an independent reference, in float64 too.

transformers computes norms, the rotary cos and sin, the softmax of eager attention and a few factors in float32, also for a
float64 model. For the float64 reference the norms are replaced by their formulas, and the other code of transformers runs with
``torch.float32`` patched to float64.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

TINY_CONFIG = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
EAGER = {"gemma2", "granite_swa"}
"""Model types with softcaps or sinks, which sdpa does not have."""
READ_BY_GETATTR = {(kind, "head_dim") for kind in ("qwen2", "smollm3", "granite", "granite_swa", "olmo2", "phi3")}
"""Fields that the layers read although the config class does not declare them."""

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "llama3": {
        **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        **{"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16},
        **{"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    },
}


def tiny_reference(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **fields) -> PreTrainedModel:
    """Return a tiny random model of a model type of transformers. ``fields`` are those of its config, which are read back."""
    make_config = CONFIG_MAPPING[kind]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    fields = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, **TINY_CONFIG, **special, **fields}
    config = make_config(**copy.deepcopy(fields), attn_implementation="eager" if kind in EAGER else "sdpa")
    for name, value in fields.items():
        known = hasattr(make_config(), name) or (kind, name) in READ_BY_GETATTR
        assert known, f"{name} is not a field of {make_config.__name__}, which accepts any name"
        found = getattr(config, name)
        assert found == value or (isinstance(value, dict) and value.items() <= found.items()), (name, found, value)
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[make_config](config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # far from the uniform attention of a fresh model
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
            elif name.endswith("norm.weight"):
                parameter.uniform_(-0.5, 0.5) if kind.startswith("gemma") else parameter.uniform_(0.5, 1.5)
            else:  # a bias or sinks
                parameter.normal_(0, 1)
    return model


@contextmanager
def float64_reference(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` compute everything in float64 inside the ``with`` block."""

    def norm(self, x):
        eps, gain = (self.eps, 1 + self.weight) if hasattr(self, "eps") else (self.variance_epsilon, self.weight)
        return gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def rotary(self, x, position_ids, layer_type=None):
        rope_type, more = (
            (self.rope_type, {}) if layer_type is None else (self.rope_type[layer_type], {"layer_type": layer_type})
        )
        plain = lambda c, d, seq_len, **more: self.compute_default_rope_parameters(c, **more)  # noqa: E731
        frequencies, gain = ROPE_INIT_FUNCTIONS.get(rope_type, plain)(
            self.config, x.device, seq_len=int(position_ids.max()) + 1, **more
        )
        assert frequencies.dtype == torch.float64
        angle = position_ids[..., None].double() * frequencies
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos() * gain, angle.sin() * gain

    norms = {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
    rotaries = {type(m) for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")}
    assert len(norms) == 1
    assert len(rotaries) == 1
    for m in model.modules():
        if hasattr(m, "scalar_embed_scale"):  # Gemma rounds it to float32
            m.embed_scale = torch.tensor(m.scalar_embed_scale, dtype=torch.float64)
    module, original_forward = inspect.getmodule(type(model)), type(model).forward
    name = "get_llama_4_attn_scale"
    query_scale = getattr(module, name, None)  # of Ministral 3; divides positions in the default dtype

    def double_query_scale(positions, *numbers):
        return query_scale(positions.double(), *numbers)

    def forward(self, *args, **kwargs):
        with patch("torch.float32", torch.float64), patch("torch.float", torch.float64):
            return original_forward(self, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(norms.pop(), "forward", norm))
        stack.enter_context(patch.object(rotaries.pop(), "forward", rotary))
        stack.enter_context(patch.object(type(model), "forward", forward))
        if query_scale is not None:
            stack.enter_context(patch.object(module, name, double_query_scale))
        yield


@torch.no_grad()
def logits_by_steps(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of the reference, token by token through its own cache, which dynamic NTK scaling needs."""
    state, logits = None, []
    for token in tokens.split(1, dim=1):
        out = model(token, past_key_values=state, use_cache=True)
        state = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def save_folder(model: PreTrainedModel, folder: Path) -> Path:
    """Save ``model`` as a Hugging Face folder; return the folder."""
    model.save_pretrained(folder)
    return folder


def dense(model, text):
    """Return the logits, attention weights ``(B, N, T, T)``, keys and values of transformers for the whole prompt."""
    model.set_attn_implementation("eager")
    with float64_reference(model), patch("torch.float32", torch.float64), torch.no_grad():
        out = model(text, output_attentions=True, use_cache=True)
    assert out.attentions[0].dtype == torch.float64
    return out.logits[:, -1], out.attentions, [(layer.keys, layer.values) for layer in out.past_key_values.layers]

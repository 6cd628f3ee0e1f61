"""transformers as an independent reference, in float64 too.

transformers computes RMSNorm and the rotary cos and sin in float32, also for a float64 model. For the float64 reference the
norm is replaced by its formula. The rotary code of transformers runs with ``torch.float`` patched to float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

TINY_CONFIG = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


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
    """Return a tiny random LLaMA or Mistral of transformers. ``fields`` are those of its config, which are read back."""
    configs = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}
    make_config, make = configs[kind]
    fields = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, **TINY_CONFIG, **fields}
    config = make_config(**fields, attn_implementation="sdpa")
    for name, value in fields.items():
        assert hasattr(make_config(), name), f"{name} is not a field of {make_config.__name__}, which accepts any name"
        found = getattr(config, name)
        assert found == value or (isinstance(value, dict) and value.items() <= found.items()), (name, found, value)
    torch.manual_seed(seed)
    model = make(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the uniform attention of a fresh model
            parameter.normal_(0, 0.3) if parameter.ndim == 2 else parameter.uniform_(0.5, 1.5)
    return model


@contextmanager
def float64_reference(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` compute its norms and rotary angles in float64 inside the ``with`` block."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        with patch("torch.float", torch.float64), patch("torch.float32", torch.float64):
            first = ROPE_INIT_FUNCTIONS.get(self.rope_type, lambda c, d, seq_len: self.compute_default_rope_parameters(c))
            frequencies, gain = first(self.config, x.device, seq_len=int(position_ids.max()) + 1)
        assert frequencies.dtype == torch.float64
        angle = position_ids[..., None].double() * frequencies
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos() * gain, angle.sin() * gain

    norms = {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
    rotaries = {type(m) for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")}
    assert len(norms) == 1
    assert len(rotaries) == 1
    with patch.object(norms.pop(), "forward", norm), patch.object(rotaries.pop(), "forward", rotary):
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

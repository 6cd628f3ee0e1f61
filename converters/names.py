"""Tensor names in checkpoints: prefixes of wrappers, and stored tensors that are no parameters."""

import re

from msrnn import Error

INNER_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""Of ``torch.compile``, FSDP, activation checkpointing and DeepSpeed; they may be around any module."""
OUTER_WRAPPERS = re.compile(r"(?:(?:module|model|base_model)\.)*")
"""Of DataParallel, Lightning and peft; they are around the whole model."""
BUFFERS = re.compile(
    r"(?:.*\.)?(?:rotary_emb\.\w+"  # Hugging Face: inv_freq, cos_cached, sin_cached
    r"|self_attn\.(?:masked_)?bias|causal_mask|position_ids"  # Hugging Face: masks
    r"|rope\.freqs|freqs_cis|freqs_cos|freqs_sin"  # Meta: LLaMA 1 has inner_attention.rope.freqs in every layer
    r"|attn_rot_embd\.weight)"  # GGUF
)
ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_|base_layer\.|modules_to_save\.|ia3_|hada_|lokr_|oft_|boft_|vera_|prompt_encoder\.|adaption_)|\.lora\."
)
QUANTISED = re.compile(
    r"\.(?:qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|quant_state|nested_absmax|nested_quant_map"
    r"|weight_packed|weight_shape|weight_scale|weight_scale_inv|input_scale|weight_zero_point)(?:\.|$)|\.weight\.\w"
)


def is_buffer(name: str) -> bool:
    """Return True for stored tables and masks of old conversions, which no model reads; ``name`` may have wrappers."""
    return BUFFERS.fullmatch(INNER_WRAPPERS.sub("", name)) is not None


def split_wrappers(name: str) -> tuple[str, str]:
    """Return the prefix of outer wrappers and the rest of ``name``, both without inner wrappers."""
    bare = INNER_WRAPPERS.sub("", name)
    match = OUTER_WRAPPERS.match(bare)
    prefix = match[0] if match else ""
    return prefix, bare[len(prefix) :]


def unknown_name(name: str) -> Error:
    """Return the error for a tensor that the architecture does not have; it says what to do."""
    if ADAPTER.search(name):
        return Error(
            f"tensor {name!r} belongs to an adapter; expected the model with the adapter merged into it; call "
            "merge_and_unload() of peft and use the result"
        )
    if QUANTISED.search(name):
        return Error(
            f"tensor {name!r} belongs to quantised weights; expected float32, float16 or bfloat16; take the original "
            "model, or a GGUF file of it"
        )
    return Error(f"tensor {name!r} is not part of this architecture (a bias, an adapter or another model?)")

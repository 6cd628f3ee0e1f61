"""Model types of Hugging Face that are not supported, and what a layer or a state would have to do for them."""

EXPERTS = "a mixture of experts; support needs a layer with a router and several MLPs"
HYBRID = "a hybrid with recurrent layers; support needs a second kind of state, besides rows of keys and values"
EXPERTS_AND_HYBRID = "a hybrid with recurrent layers and experts; support needs a second kind of state, and a router"
SHARED_KEYS = (
    "a Gemma with per-layer embeddings and layers that share keys and values; support needs a state for several layers"
)
LATENT = "a model with latent attention; support needs rows of compressed keys and values"

LEFT_OUT = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "olmoe", "phimoe", "llama4", "llama4_text"), EXPERTS),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoe_swa", "minimax_m2", "glm4_moe", "ernie4_5_moe"), EXPERTS),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv", "lfm2", "falcon_h1", "bamba"), HYBRID),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "olmo_hybrid", "zamba", "zamba2", "xlstm"), HYBRID),
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe", "granitemoehybrid", "jamba", "lfm2_moe", "nemotron_h"), EXPERTS_AND_HYBRID),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified"), SHARED_KEYS),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), LATENT),
    "gemma": "the first Gemma; support needs a layer of Gemma 2 without the norms of outputs",
    "olmo3": "OLMo 3; support needs layers of OLMo 2 with windows, and a rope for each kind of layer",
    "exaone4": "EXAONE 4; support needs layers of OLMo 2 with windows and a norm of each head",
    "cohere2": "Command R7B; support needs layers with attention and MLP in parallel",
}
"""What a model is, and what support needs, by ``model_type``."""

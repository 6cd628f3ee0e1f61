"""GGUF: header, config, weights, tokenizer."""

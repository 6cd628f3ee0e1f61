"""GGUF, the format of llama.cpp: header, config and weights."""

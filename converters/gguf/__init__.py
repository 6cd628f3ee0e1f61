"""GGUF, the format of llama.cpp: reader.py opens a file, header.py parses it, tensors.py dequantises."""

"""Files of tensors and tokenizers: safetensors shards, PyTorch files, SentencePiece."""

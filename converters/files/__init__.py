"""Files of tensors: safetensors or PyTorch files, with or without an index of shards."""

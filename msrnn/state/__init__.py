"""The state H: the KV cache as a value, with its positions, clock and operator."""

"""Files: atomic writes, JSON and safetensors. Nothing here knows a model."""

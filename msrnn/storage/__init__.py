"""Files: atomic writes, JSON, safetensors and model folders. No module here imports a model class."""

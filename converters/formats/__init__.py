"""Checkpoint formats: Hugging Face, Meta, Mistral, and models in memory."""

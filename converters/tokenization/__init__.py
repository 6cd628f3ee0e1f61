"""Tokenizers: built from the metadata of a GGUF file or from SentencePiece's ``tokenizer.model``."""

"""Streaming detokenizer, chat templates and printing of streamed text."""

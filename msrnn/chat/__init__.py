"""Conversations with undo, branches and files, and the REPL of ``msrnn chat``."""

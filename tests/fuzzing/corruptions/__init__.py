"""What can happen to a file: small named damages, by the kind of file they are for.

A damage is given a random generator and a file, changes it (or puts something else in its place), and says whether a reader
has to refuse what is there now because a whole, unambiguous checkpoint it cannot be any more. Where it says False, what is
read must be what stands in the file.
"""

from . import any_file, gguf_header, index, json_text, pickled, safetensors_header
from .registry import DAMAGES, SECRET, kinds

__all__ = ["DAMAGES", "SECRET", "any_file", "gguf_header", "index", "json_text", "kinds", "pickled", "safetensors_header"]

"""Damages of files: small functions with a name, registered by the kind of file.

A damage takes a random generator and a file. It changes the file or puts something else in its place. It returns True if a
reader must refuse the result, because the checkpoint is incomplete or ambiguous. If it returns False and a reader accepts the
file, the result must equal the content of the file.
"""

from . import any_file, gguf_header, index, json_text, other_files, pickled, safetensors_header
from .registry import DAMAGES, SECRET, kinds

__all__ = ["DAMAGES", "SECRET", "any_file", "gguf_header", "index", "json_text", "kinds"]
__all__ += ["other_files", "pickled", "safetensors_header"]

"""GGUF files, written by the package's own writer."""

import gguf
import numpy as np


def write(path, metadata, tensors, kinds=None):
    """A GGUF file by the package's own writer; ``tensors`` float32 or, named in ``kinds``, bytes of a quantisation."""
    writer = gguf.GGUFWriter(None, "llama")
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, x in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(x), raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

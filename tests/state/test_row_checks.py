"""A file of an operator with sizes for other heads is refused with its name."""

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.refusals import refusing
from support.tiny_models import random_tokens, tiny_cell

import msrnn


def test_sizes_of_other_heads_name_the_file_and_the_layer(tmp_path):
    cell, path = tiny_cell(), tmp_path / "state.safetensors"
    cell(random_tokens(0, 2, 15), cell.initial_state(2, "tova-head:4/7"))[1].save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert "[4, 7]" in metadata["operators"]
    metadata["operators"] = metadata["operators"].replace("[4, 7]", "[4, 7, 5]")
    save_file(load_file(path), path, metadata)
    with refusing(f"{path}: layer 0: TOVA: 3 sizes for a layer of 2 key/value heads; expected one per head"):
        msrnn.load_state(path)

"""The file of ``msrnn generate --state``."""

import json

from support.tiny_models import tiny_cell

from msrnn.cli.state_file import SavedText
from msrnn.storage.safetensors_io import read_metadata
from msrnn.text.detokenizer import CONTEXT_TOKENS


def test_the_newest_ids_of_a_text_are_kept(tmp_path):
    """The next call decodes its tokens after them, and finds stop strings that begin in them."""
    SavedText(tiny_cell().initial_state(1), None, list(range(CONTEXT_TOKENS + 36))).save(tmp_path / "state")
    ids = json.loads(read_metadata(tmp_path / "state")["generate"])["ids"]
    assert ids == list(range(36, CONTEXT_TOKENS + 36))

"""Importing the library imports no heavy package; ``lint-imports`` checks the direction of imports."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_import_loads_no_heavy_package():
    heavy = {"converters", "transformers", "matplotlib", "huggingface_hub", "tokenizers", "gguf", "jinja2"}
    code = f"import sys, msrnn; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert done.stderr == ""

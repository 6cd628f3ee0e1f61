"""What works without the extras: only the core dependencies of pyproject.toml, and what they require, can be imported."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml  # comes with huggingface-hub
from packaging.requirements import Requirement
from support.gguf_files import METADATA, to_gguf, write
from support.project import PROJECT
from support.tiny_models import tiny_cell
from support.tiny_tokenizer import chat_cell

ROOT = Path(__file__).parents[2]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
README = (
    BLOCK
    + """
import converters.hub
from pathlib import Path
converters.hub.fetch = lambda *_, **__: Path(sys.argv[1])
exec(compile(Path("README.md").read_text("utf-8").split("```python\\n")[1].split("```")[0], "README.md", "exec"))
"""
)
RUN = BLOCK + "from msrnn.cli.main import main; sys.exit(main(sys.argv[1:]))"
RUN_EACH = (
    BLOCK
    + """
import io, json
from contextlib import redirect_stderr, redirect_stdout
from msrnn.cli.main import main
for command in sys.argv[1:]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(json.loads(command))
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
)
"""Runs several commands in one process, because an import of torch takes longer than a refusal."""


def closure(requirements):
    """Return the names of the distributions that are installed for the requirements."""
    found, pending = set(), [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        name = requirement.name.lower().replace("_", "-")
        extras = {"", *requirement.extras}
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(requirement.name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(inner)
    return found


@pytest.fixture(scope="module")
def blocked():
    """The top-level modules of all other installed distributions."""
    core = closure(PROJECT["project"]["dependencies"])
    modules = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if not any(name.lower().replace("_", "-") in {*core, "msrnn"} for name in distributions)
    } - {"msrnn", "converters"}
    assert {"matplotlib", "lm_eval", "datasets", "rouge_score", "HanTa", "transformers"} <= modules
    assert not {"torch", "numpy", "tokenizers", "jinja2", "gguf"} & modules
    return modules


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat_cell().save(folder / "tiny")
    return folder / "tiny"


def run(blocked, *words, code=RUN, **settings):
    command = [sys.executable, "-W", "error", "-c", code.format(blocked=blocked), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, **settings)


def test_the_first_program_of_the_readme_runs_without_warnings(blocked, model):
    done = run(blocked, model, code=README)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "tova:12" in done.stdout


@pytest.mark.parametrize("command", ["info", "generate", "read", "chat", "convert", "--help", "--version"])
def test_commands_run_without_warnings(command, blocked, model, tmp_path):
    words = {
        "info": [model],
        "generate": [model, "--prompt", "the sea", "--max-new-tokens", 2],
        "read": [model, "--prompt", "the sea", "--state", tmp_path / "state"],
        "chat": [model, "--max-new-tokens", 2],
        "convert": [model, tmp_path / "new", "--to", "hf"],
    }
    done = run(blocked, command, *words.get(command, []), input="hello\n")
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    assert "Traceback" not in done.stderr


def test_gguf_files_are_read_without_warnings(blocked, tmp_path):
    path = write(tmp_path / "x.gguf", METADATA, to_gguf(tiny_cell(dtype=torch.float32)))
    code = BLOCK + "import warnings, converters; warnings.filterwarnings('ignore', 'the model has no tokenizer')\n"
    done = run(blocked, path, code=code + "print(converters.load(sys.argv[1]).config.family)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "llama\n", "")


NEED_EXTRAS = {
    "compare MODEL --prompt x --reduction full --picture x.png": ("matplotlib", "plot"),
    "retention MODEL --prompt x --reduction full --out x.png": ("matplotlib", "plot"),
    "bench MODEL --picture x.png": ("matplotlib", "plot"),
    "soak MODEL --tokens 9 --reduction tova:3 --out new": ("matplotlib", "plot"),
    "train README.md --out new": ("matplotlib", "plot"),
    "variants README.md --out new": ("matplotlib", "plot"),
    "eval lm MODEL --text README.md --out new": ("matplotlib", "plot"),
    "eval lm MODEL --text owner/name": (
        "datasets",
        "harness",
        "owner/name is no file or folder, and for a data set of the hub ",
    ),
    "eval retention MODEL --text README.md --parts-of-speech": ("HanTa", "eval"),
    "lm-eval run": ("lm-eval", "harness"),
}


@pytest.fixture(scope="module")
def refusals(blocked, model):
    """Exit code, output and error output of each command of ``NEED_EXTRAS``."""
    commands = [[str(model) if word == "MODEL" else word for word in command.split()] for command in NEED_EXTRAS]
    done = run(blocked, *map(json.dumps, commands), code=RUN_EACH)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(NEED_EXTRAS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", NEED_EXTRAS)
def test_a_missing_extra_is_named_in_one_sentence_before_any_work(command, refusals):
    package, extra, *begin = NEED_EXTRAS[command]
    sentence = f"msrnn: {''.join(begin)}the package {package} is not installed; pip install 'msrnn[{extra}]'\n"
    assert refusals[command] == [1, "", sentence]
    assert not (ROOT / "new").exists()
    assert any(text.startswith(package) for text in PROJECT["project"]["optional-dependencies"][extra])


def test_the_exchange_with_transformers_names_its_extra(blocked, model):
    code = (
        BLOCK
        + "import msrnn, msrnn.interop as i; cell = msrnn.load(sys.argv[1]); i.cache_from_state(cell, cell.initial_state())"
    )
    done = run(blocked, model, code=code)
    assert done.stderr.endswith(
        "msrnn.errors.Error: the package transformers is not installed; pip install 'msrnn[transformers]'\n"
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_help_of_the_harness_needs_no_harness(option, blocked):
    done = run(blocked, "lm-eval", option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: msrnn lm-eval")
    assert "--model_args pretrained=MODEL,reduction=tova:512" in done.stdout
    assert "pip install 'msrnn[harness]'" in done.stdout


def test_every_extra_that_a_source_file_names_exists():
    sources = [*(ROOT / "msrnn").rglob("*.py"), *(ROOT / "converters").rglob("*.py"), ROOT / "README.md", ROOT / "Makefile"]
    texts = "".join(path.read_text("utf-8") for path in sources)
    named = {name for group in re.findall(r"(?:msrnn|'\.)\[([a-z,]+)\]", texts) for name in group.split(",")}
    named |= set(re.findall(r'missing_package\("[\w-]+", "(\w+)"\)', texts))
    assert named == set(PROJECT["project"]["optional-dependencies"])


def test_the_citation_has_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])


def test_the_workflow_runs_the_commands_of_the_contributors():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    commands = re.findall(r"^ {4}(make \w+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(commands) == 4
    assert [step["run"] for step in steps if "run" in step] == commands

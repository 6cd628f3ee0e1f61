"""Who may import whom: the arrows of the design, held over ``ast``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "msrnn"
CELL = {"cell", "multistate", "state", "reduction"}
BENCH = {"bench.context", "bench.peers", "bench.row", "bench.timing"}
BELOW = {  # what each module may import of its siblings; these stand on torch and einops alone
    "error": set(),
    "admit": {"state", "fingerprint"},
    "multistate": set(),
    "state": {"multistate"},
    "rotary": set(),
    "positions": {"rotary"},
    "norm": set(),
    "linear": set(),
    "attention": set(),
    "tiled": {"attention"},
    "mask": set(),
    "multihead": {"attention"},
    "sublayer": set(),
    "fingerprint": set(),
    "reduction": {"multistate"},
    "chance": set(),
    "forms": {"reduction"},
    "windowed": {"multistate", "reduction"},
    "keyed": {"multistate", "reduction"},
    "drawn": {"reduction", "chance"},
    "pyramid": set(),
    "places": {"attention", "multistate", "rotary"},
    "transition": {"attention", "multistate", "reduction"},
    "cell": {"admit", "multistate", "state", "places", "reduction", "forms", "rotary", "fold", "trace", "fingerprint"},
    "frame": {"attention", "multistate"},
    "decide": {"attention", "frame", "multistate", "reduction", "transition"},
    "fold": {"attention", "frame", "multistate", "reduction", "transition", "decide", "linear"},
    "trace": {"multistate", "state", "fold"},
    "models": {
        *{"models.config", "models.llama", "models.mistral", "models.yi"},
        *{"models.decoder", "models.decoder_config", "models.encoder", "models.encoder_decoder", "models.memory_encoder"},
    },
    "models.encoder": {"multihead", "sublayer", "models.config"},
    "models.memory_encoder": {"models.encoder", "models.config"},
    "models.encoder_decoder": {
        *{*CELL, "admit", "forms", "attention", "fold", "mask", "multihead", "positions", "rotary", "sublayer"},
        *{"models.config", "models.encoder", "models.network"},
    },
    "models.config": {"rotary"},
    "models.network": {*CELL, "transition", "fold", "linear", "rotary", "attention"},
    "models.llama": {"models.config", "models.network", "reduction", "linear", "rotary", "norm"},
    "models.decoder_config": {"models.config", "rotary"},
    "models.learned": {*CELL, "places", "models.network"},
    "models.decoder": {
        *{*CELL, "fold", "linear", "rotary", "positions", "norm"},
        *{"models.decoder_config", "models.learned", "models.network"},
    },
    "models.mistral": {"models.config", "reduction", "rotary"},
    "models.yi": {"models.config", "reduction", "rotary"},
}
ABOVE = {
    "decode": CELL,
    "prefill": {*CELL, "admit", "forms", "attention", "fold", "transition"},
    "pool": set(),
    "guess": {"pool"},
    "watch": set(),
    "passes": {*CELL, "guess", "pool", "watch"},
    "lookahead": {*CELL, "decode", "guess", "passes", "pool", "watch"},
    "evaluate": CELL,
    "retention": CELL,
    "spelling": set(),
    "compare": {*CELL, "retention", "spelling"},
    "check": CELL,
    "soak": {*CELL, "check", "files", "snapshot"},
    "info": {"checkpoint", "models"},
    "template": set(),
    "branch": {*CELL, "template", "files", "snapshot"},
    "bench.prompts": {*CELL, "template"},
    "bench.decode": {*CELL, "decode", "lookahead", "pool", "bench.prompts", *BENCH},
    "ways": {*CELL, "decode", "lookahead", "pool"},
    "live": set(),
    "chat": {*CELL, "template", "branch", "spelling", "pool", "ways"},
    "terminal": {"chat", "state", "live"},
    "arguments": {"forms", "reduction", "ways", "bench.sections"},
    "asked": {"reduction"},
    "files": set(),
    "tensors": {"files"},
    "bench": set(),
    "bench.row": set(),
    "bench.timing": set(),
    "bench.peers": {"files"},
    "bench.context": {*CELL, "bench.peers", "bench.row", "bench.timing"},
    "bench.press": {"bench.row", "bench.context"},
    "bench.press_child": set(),
    "bench.fold": {*CELL, *BENCH},
    "bench.guesses": {*BENCH, "fold", "decide"},
    "bench.step": {*CELL, *BENCH, "bench.press"},
    "bench.process": {*CELL, *BENCH},
    "bench.held": {*CELL, *BENCH, "bench.process", "compare", "snapshot"},
    "bench.curve": {*CELL, *BENCH},
    "bench.sections": {*BENCH, "bench.decode", "bench.fold", "bench.guesses", "bench.held", "bench.step"},
    "bench.report": {"bench.row"},
    "bench.command": {*BENCH, "bench.curve", "bench.press", "bench.report", "bench.sections", "files", "plot", "forms"},
    "checkpoint": {
        *{"files", "tensors", "cell", "rotary"},
        *{
            "models.config",
            "models.decoder",
            "models.decoder_config",
            "models.encoder_decoder",
            "models.llama",
            "models.network",
        },
    },
    "snapshot": {"files", "tensors", "multistate", "state", "places", "forms", "reduction", "rotary", "fingerprint"},
}
RECORDS = {"models.config", "models.decoder_config", "models.encoder_decoder"}
TRAIN = {
    "train.recipe": {"checkpoint", "files", *RECORDS, "forms"},
    "train.tokens": {"files", "train.recipe"},
    "train.data": {"train.recipe", "train.tokens"},
    "train.run": {*CELL, "models.learned", "train.data", "train.recipe"},
    "train.tasks": {*CELL, "models.learned"},
    "train.variants": {"checkpoint", "eval.sweep", "train.data", "train.recipe", "train.run", "train.tasks"},
    "train.outcome": {"eval.report", "eval.sweep", "train.tasks", "train.variants"},
    "train.saved": {"checkpoint", "files", "tensors", "snapshot", "train.data", "train.recipe", "train.run", "train.tokens"},
    "train.loop": {"checkpoint", "train.data", "train.recipe", "train.run", "train.saved"},
    "train.command": {"asked", "train.loop", "train.recipe"},
    "train": {"train.loop", "train.recipe"},
}
EVAL = {  # the experiments; "eval.command" lists them
    "eval.text": set(),
    "eval.statistics": set(),
    "eval.report": set(),
    "eval.forced": CELL,
    "eval.sweep": {*CELL, "files"},
    "eval.kinds": set(),
    "eval.questions": {"files"},
    "eval.grid": {"forms", "reduction", "arguments"},
    "eval.source": {*CELL, "arguments", "eval.text"},
}
SHARED = {*CELL, *EVAL, "arguments"}
EXPERIMENTS = {
    **{"eval.lm": SHARED, "eval.kept": SHARED | {"retention"}, "eval.passkey": SHARED, "eval.throughput": SHARED},
    "eval.shortcut": SHARED | {"prefill"},
    "eval.beyond": SHARED | {"places", "snapshot"},
    **{"eval.generation": SHARED | {"decode"}, "eval.understanding": SHARED | {"decode", "eval.passkey"}},
}
ABOVE |= {**TRAIN, "eval": set(), **EVAL, **EXPERIMENTS, "eval.command": {*EXPERIMENTS, "eval.report", "eval.source", "files"}}
HARNESS = {"lm_eval.api.instance", "lm_eval.api.model", "lm_eval.models.utils", "lm_eval.utils"}
ABOVE["eval.harness"] = {*CELL, "decode", "eval.forced", "eval.passkey", *HARNESS}  # the command line beside it imports it
ABOVE["eval.__main__"] = {"eval.harness", "converters"}
ABOVE["eval.pictures"] = {"files", "plot", "eval.report"}
ABOVE["train.__main__"] = {
    "arguments",
    "asked",
    "eval.command",
    "files",
    "plot",
    "train.outcome",
    "train.variants",
}  # make variants
FRONT = {*BELOW, *ABOVE} - {"eval.pictures", "eval.harness", "eval.__main__", "train.__main__"}
ARROWS = {**BELOW, **ABOVE, "plot": {"files"}, "": FRONT, "__main__": {*FRONT, "", "plot", "converters"}}
DEFERRED = {  # inside a function only: save methods, and the extras
    *{("cell", "checkpoint"), ("state", "snapshot"), ("plot", "matplotlib"), ("spelling", "tokenizers")},
    *{("eval.kinds", "HanTa"), ("eval.questions", "rouge_score"), ("eval.__main__", "lm_eval"), ("eval.text", "datasets")},
    *{("eval.command", "plot"), ("eval.command", "eval.pictures"), ("eval.pictures", "matplotlib")},
    *{("__main__", "matplotlib"), ("__main__", "tokenizers"), ("chat", "tokenizers"), ("template", "jinja2")},
    *{("bench.peers", "transformers"), ("bench.press_child", "transformers"), ("bench.press_child", "kvpress")},
    *{("bench.context", "tokenizers"), ("train.tokens", "tokenizers"), ("train.command", "plot")},
}
PACKAGES = ("models", "eval", "bench", "train")
LIBRARIES = sys.stdlib_module_names | {"torch", "einops"}


def imported(node, module):
    """The modules an import names, ours without ``msrnn.``; a name taken from a package counts as its module if it is one."""
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    else:
        package = ["msrnn", *module.split(".")[:-1]] if module not in PACKAGES else ["msrnn", module]
        base = [*package[: len(package) - node.level + 1], node.module or ""] if node.level else [node.module]
        stem = ".".join(filter(None, base))
        inner = [f"{stem}.{alias.name}" for alias in node.names]
        full = [name if name[6:] in ARROWS and stem.removeprefix("msrnn.") in ("msrnn", *PACKAGES) else stem for name in inner]
    return {name.removeprefix("msrnn").removeprefix(".") for name in full}


def violations(module, source):
    """Every import of ``source``, the text of msrnn/``module``, that no arrow allows, as ``module -> imported``."""
    found, todo = [], [(ast.parse(source), False)]
    while todo:
        node, inside = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # never runs: a name for the reader
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node, module):
                top = name.split(".")[0]
                library = name not in ARROWS and top in LIBRARIES | (set() if module in BELOW else {"safetensors", "tqdm"})
                deferred = inside and {(module, name), (module, top)} & DEFERRED
                if not (library or deferred or name == "error" or name in ARROWS.get(module, ())):
                    found.append(f"{module} -> {name or 'msrnn'}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.append(f"{module} -> {ast.unparse(node)}")
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        todo += [(child, inside) for child in ast.iter_child_nodes(node)]
    return sorted(found)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_arrows_hold(path):
    assert violations(name_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "arrow"),
    [
        ("state", "from .reduction import Reduction", "state -> reduction"),
        ("state", "from .snapshot import save_state", "state -> snapshot"),  # not deferred
        ("norm", "def f():\n    from . import cell", "norm -> cell"),
        ("rotary", "import numpy", "rotary -> numpy"),
        ("attention", "from msrnn.state import State", "attention -> state"),
        ("reduction", "class A:\n    def f(self):\n        import msrnn.cell.cell", "reduction -> cell"),
        ("cell", "from msrnn import decode", "cell -> decode"),
        ("cell", "from . import Cell", "cell -> msrnn"),
        ("cell", "import safetensors", "cell -> safetensors"),
        ("plot", "import matplotlib", "plot -> matplotlib"),  # not deferred
        ("decode", "from .models.llama import Llama", "decode -> models.llama"),
        ("decode", "from .models import Llama", "decode -> models"),
        ("retention", "from . import models", "retention -> models"),
        ("eval.lm", "def f():\n    from ..plot import draw", "eval.lm -> plot"),
        ("eval.lm", "def f():\n    from .pictures import draw", "eval.lm -> eval.pictures"),
        ("eval.lm", "from . import command", "eval.lm -> eval.command"),
        ("eval.command", "from .pictures import draw", "eval.command -> eval.pictures"),  # not deferred
        ("models.llama", "from ..plot import draw", "models.llama -> plot"),
        ("models.llama", "from . import yi", "models.llama -> models.yi"),
        ("models.yi", "from .mistral import Mistral", "models.yi -> models.mistral"),
        ("models.mistral", "from ..cell import Cell", "models.mistral -> cell"),
        ("checkpoint", "import converters", "checkpoint -> converters"),
        ("", "from converters import load", " -> converters"),
        ("", "from .plot import draw", " -> plot"),
        ("plot", "from .__main__ import main", "plot -> __main__"),
        ("decode", "from importlib import import_module\nimport_module('x')", "decode -> import_module('x')"),
        ("brand_new", "from .state import State", "brand_new -> state"),
    ],
)  # fmt: skip
def test_an_arrow_not_listed_is_seen(module, source, arrow):
    assert violations(module, source) == [arrow]


def test_listed_arrows_pass():
    assert violations("state", "import torch\ndef save(self):\n    from .snapshot import save_state") == []
    assert (
        violations("decode", "import math\nfrom torch.nn import Module\nfrom .cell import Cell\nfrom .error import Error") == []
    )
    assert violations("models.network", "from ..cell import Cell\nfrom ..state import State") == []
    assert violations("__main__", "def main():\n    import converters\n    from . import plot\n    import msrnn") == []


def test_importing_brings_in_nothing_heavy():
    heavy = {"converters", "transformers", "matplotlib", "huggingface_hub", "tokenizers", "gguf", "jinja2"}
    code = f"import sys, msrnn; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert done.stderr == ""

"""Install the wheel of FOLDER into an environment with its declared dependencies only, and try it there.

``python tests/support/check_dist.py FOLDER``, where ``make dist`` has written one sdist and one wheel. torch has gigabytes, so
nothing is downloaded: the environment has links to the dependencies that the wheel declares, and to what they require. Other
packages of this environment (transformers, matplotlib, …) and the source tree cannot be imported there.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CELL = """
import dataclasses, sys, torch, msrnn, converters
from msrnn.models.registry import build_random
from msrnn.models.llama import LLAMA_2_7B
sizes = dict(vocab_size=50, width=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_width=32)
cell = build_random(dataclasses.replace(LLAMA_2_7B, **sizes)).eval().requires_grad_(False)
token, state = torch.tensor([3]), cell.initial_state(1, "tova:4")
for _ in range(9):
    logits, state = cell.step(token, state)
    token = logits.argmax(-1)
assert state[0].positions.shape == (1, 2, 4) and logits.isfinite().all()
cell.save(sys.argv[1])
"""
CONVERTED = """
import sys, warnings, torch, msrnn, converters
warnings.filterwarnings("ignore", "the model has no tokenizer")
own, hf = msrnn.load(sys.argv[1]), converters.load(sys.argv[2])
tokens = torch.arange(20)[None]
assert torch.equal(own(tokens)[0], hf(tokens)[0])
for name in ("transformers", "matplotlib", "pytest"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported, so the environment is not empty")
print(msrnn.__file__)
"""


def read_wheel(wheel: Path) -> Message:
    """Check the files of the wheel, and return its metadata."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
        text = HeaderParser().parsestr(file.read(f"{info}METADATA").decode())
    tracked = subprocess.check_output(["git", "ls-files", "msrnn", "converters"], cwd=ROOT, text=True).split()
    found = [name for name in names if not name.startswith(info)]
    assert sorted(found) == sorted(tracked), f"the wheel differs from the tracked files: {set(found) ^ set(tracked)}"
    assert {"msrnn/py.typed", "converters/py.typed", f"{info}licenses/LICENSE"} <= {*names}, names
    return text


def read_sdist(sdist: Path) -> None:
    """Check that the sdist has what a build needs and what its readers look for."""
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    missing = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} - names
    assert not missing, f"the sdist has no {missing}"


def link_dependencies(requirements: list[str], site: Path) -> list[str]:
    """Link the distributions that ``requirements`` need into ``site``; return their names."""
    pending, linked = [(Requirement(text), "") for text in requirements], set[str]()
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        distribution = metadata.distribution(requirement.name)
        inner = [Requirement(text) for text in distribution.requires or ()]
        pending += [(x, e) for e in requirement.extras for x in inner]
        if requirement.name.lower() in linked:
            continue
        linked.add(requirement.name.lower())
        pending += [(x, "") for x in inner]
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return sorted(linked)


def main(folder: str) -> None:
    (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
    read_sdist(sdist)
    text = read_wheel(wheel)
    required = [x for x in text.get_all("Requires-Dist") if "extra ==" not in x]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        venv.create(work / "env", with_pip=True)
        python, msrnn = work / "env/bin/python", work / "env/bin/msrnn"
        (site,) = (work / "env/lib").glob("python*/site-packages")
        linked = link_dependencies(required, site)

        def run(*command: object) -> str:
            return subprocess.run([*map(str, command)], cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout

        pip = (python, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "install", "-q", "--no-deps", "--no-index", wheel.resolve())
        run(*pip, "check")
        assert "usage: msrnn" in run(msrnn, "--help")
        assert f"msrnn {text['Version']}," in run(msrnn, "--version")
        assert "usage: msrnn convert" in run(python, "-m", "converters", "--help")
        run(python, "-W", "error", "-c", CELL, "own")
        run(python, "-m", "converters", "own", "hf", "--to", "hf")
        assert run(python, "-W", "error", "-c", CONVERTED, "own", "hf").strip() == str(site / "msrnn/__init__.py")
        program = ROOT / "tests/typing/user_program.py"
        run(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python, program)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e3:.0f} kB; {sdist.name}: {sdist.stat().st_size / 1e3:.0f} kB")
    print(f"tried with {', '.join(linked)}")


if __name__ == "__main__":
    main(sys.argv[1])

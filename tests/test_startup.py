"""Ctrl-C while a command imports its modules, the threads of OpenMP, and imports of the library that change neither."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from msrnn.startup import is_program

ROOT = Path(__file__).parents[1]
SLOW_IMPORT = "import time; print('importing', flush=True); time.sleep(60)"


@pytest.fixture
def environment(tmp_path):
    """An environment in which the import of torch takes a minute."""
    (tmp_path / "slow" / "torch").mkdir(parents=True)
    (tmp_path / "slow" / "torch" / "__init__.py").write_text(SLOW_IMPORT)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'slow'}:{ROOT}"}


def interrupt(command, environment):
    """Run a command, send SIGINT when torch is being imported, and return exit code and standard error."""
    default = signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored SIGINT would be inherited
    try:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, *command], env=environment, **pipes) as process:
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    finally:
        signal.signal(signal.SIGINT, default)
    return process.returncode, err


@pytest.mark.parametrize(
    "command", [["-m", "msrnn", "info", "x"], ["-m", "converters", "x", "y"], ["-Bm", "msrnn"], ["SCRIPT"]]
)
def test_ctrl_c_during_the_imports_of_a_command(command, environment, tmp_path):
    script = tmp_path / "msrnn"  # as pip writes it
    script.write_text("import sys\nfrom msrnn.__main__ import main\nsys.exit(main())\n")
    command = [str(script) if word == "SCRIPT" else word for word in command]
    assert interrupt(command, environment) == (130, "\nstopped\n")


def test_a_program_that_imports_the_library_gets_keyboard_interrupt(environment):
    code, err = interrupt(["-c", "try:\n import msrnn\nexcept KeyboardInterrupt:\n exit(7)"], environment)
    assert (code, err) == (7, "")


@pytest.mark.parametrize("handler", ["signal.default_int_handler", "signal.SIG_IGN", "print"])
def test_an_import_keeps_the_signal_handler(handler):
    code = f"import signal; signal.signal(signal.SIGINT, {handler}); import msrnn\n"
    code += f"assert signal.getsignal(signal.SIGINT) is {handler}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        (["-m", "msrnn", "--version"], {}, "10000"),
        (["-m", "converters", "--help"], {}, "10000"),
        (["-m", "msrnn", "--version"], {"GOMP_SPINCOUNT": "77"}, "77"),
        (["-m", "msrnn", "--version"], {"OMP_WAIT_POLICY": "ACTIVE"}, None),
        (["-m", "msrnn", "--version"], {"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
        (["-c", "import msrnn"], {}, None),
    ],
)
def test_commands_limit_the_spinning_of_openmp(command, given, expected):
    """libgomp prints the setting that it has read when torch loads it."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {**given, "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch does not use libgomp")
    (found,) = re.findall(r"GOMP_SPINCOUNT = '(.*)'", done.stderr)
    if expected is None:
        assert int(found) > 10000
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["-m", "info"], ["python", "-m", "msrnn", "info"], True),
        (["-m"], ["python", "-W", "error", "-Im", "converters"], True),
        (["/bin/msrnn", "info"], ["/bin/python", "/bin/msrnn", "info"], True),
        (["-m", "x"], ["python", "-m", "pytest", "x"], False),
        (["-m"], ["python", "-m", "msrnn.bench.worker"], False),
        (
            ["/bin/msrnn", "train"],
            ["python", "-c", "from multiprocessing.spawn import spawn_main", "--multiprocessing-fork"],
            False,
        ),
        (["script.py", "-m", "msrnn"], ["python", "script.py", "-m", "msrnn"], False),
        (["-c"], ["python", "-c", "import msrnn"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_only_commands_are_recognised(argv, orig_argv, expected):
    assert is_program(argv, orig_argv) is expected

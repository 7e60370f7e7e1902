"""The suite runs in the background, too, ends although a test hangs, and prints the key lines."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "pytest", "-p", "no:schemathesis", "-p", "tests.unattended"]
NO_SETTINGS = ("-c", "/dev/null")

PROGRAM_IGNORES = """
import subprocess, sys
def test_program():
    code = "import signal; print(repr(signal.getsignal(signal.{name})))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "IGN" not in ended.stdout, ended.stdout
"""

HANGS = {
    "cleanup": "import subprocess\ndef test_hang():\n"
    "    with subprocess.Popen(['sleep', '{s}']): subprocess.run(['sleep', '{s}'])",
    "fixture of a test that failed": "import pytest, time\n@pytest.fixture\ndef late():\n"
    "    yield\n    time.sleep({s})\ndef test_hang(late): assert 0",
}


def run_pytest(folder, code, *command, settings=NO_SETTINGS, timeout_s=2.0):
    (folder / "test_it.py").write_text(code)
    options = ("--rootdir", str(folder), *settings, "--timeout", str(timeout_s), str(folder))
    return subprocess.run((*command, *COMMAND, *options), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_programs_of_a_run_in_the_background_are_ended_by_signals(tmp_path, name):
    ignore = ("bash", "-c", f'trap "" {name}; exec "$@"', "bash")
    code = PROGRAM_IGNORES.format(name=name)
    ended = run_pytest(tmp_path, code, *ignore)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("kind", list(HANGS))
def test_test_that_cannot_end_ends_the_run(tmp_path, kind):
    ended = run_pytest(tmp_path, HANGS[kind].format(s=100), timeout_s=0.4)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Timeout (0:00:00.500000)!"), ended
    assert f'File "{tmp_path}/test_it.py"' in ended.stderr


@pytest.mark.parametrize(
    ("module", "ending"),
    [
        ("gast.astn", "1 passed in"),
        ("serving.client", "1 failed in"),
        ("other", "1 passed, 1 warn"),
    ],
)
def test_deprecations_within_libraries_are_not_shown(tmp_path, module, ending):
    code = "import warnings\ndef test_warning():\n    warnings.warn_explicit("
    code += f"'late', DeprecationWarning, 'file.py', 1, {module!r})"
    ended = run_pytest(tmp_path, code, settings=("-c", "pyproject.toml"))
    assert ending in ended.stdout.splitlines()[-1]

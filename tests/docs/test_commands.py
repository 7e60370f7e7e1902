"""Commands on the pages: their options and targets exist."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.cli
import digit_reader.__main__
import lab.__main__
import serving.cli.commands
import training.cli

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "reader" / "README.md"]
PARSERS: dict[str, Callable[[], object]] = {
    "digit-serving": serving.cli.commands.parser,
    "digit-reader": digit_reader.__main__.parser,
    "python -m training": training.cli.parser,
    "python -m lab": lab.__main__.parser,
    "python -m benchmarks": benchmarks.cli.parser,
}
_START = r"(?:\w+=\S+ )*(?:\.venv/bin/)?(digit-serving|digit-reader|python -m [\w.]+) "
_COMMANDS = (re.compile(rf"(?m)^ {{4}}{_START}(.*)$"), re.compile(rf"`{_START}([^`]*)`"))
"""In a block, and in a span of code, which may go on in the next line."""
_TARGET = re.compile(r"(?m)(?:^ {4}|`)make ((?:[a-z-]+ ?)+)")


def command_lines():
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for pattern in _COMMANDS:
            for program, arguments in pattern.findall(text):
                if program in PARSERS:
                    found.append((program, " ".join(arguments.split())))
    return sorted(set(found))


@pytest.mark.parametrize(("program", "arguments"), command_lines())
def test_command_on_a_page_is_one_that_the_program_takes(program, arguments):
    command = re.split(r"\s+#|\s[<>|]\s", arguments)[0].replace(
        "checkout:../old", f"checkout:{ROOT}"
    )
    words = shlex.split(command)
    if len(words) > 1:  # a command's name alone is not a whole command
        PARSERS[program]().parse_args(words)  # type: ignore[attr-defined]  # else exits


@pytest.mark.parametrize("way", [1, 2])
def test_commands_of_the_makefile_are_ones_that_the_programs_take(way):
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("e $(RECIPE)", "e seed")
    text = text.replace("$(PEERS)", "")
    text = re.sub(r'"\$\(EXTRA\)"', "own", text.replace("$(filter cpu,$(DEVICE))", "$(CPU)"))
    text = re.sub(r"\$\(if \$\(\w+\),([^,()]*),?([^()]*)\)", rf"\{way}", text)
    found = re.findall(r"\$\(RUN\) -m (training|serving|benchmarks) (.*)", text)
    assert len(found) > 8
    for program, arguments in found:
        name = "digit-serving" if program == "serving" else f"python -m {program}"
        PARSERS[name]().parse_args(arguments.split())  # type: ignore[attr-defined]


def test_commands_are_found():
    assert len(command_lines()) > 20


def test_readme_begins_with_the_demo_and_the_tests():
    top, _, _ = (ROOT / "README.md").read_text("utf-8").partition("\n## ")
    assert re.findall(r"(?m)^ {4}(make \w+) +# \d+ minutes: ", top) == ["make demo", "make test"]
    assert " GB" in top


def test_targets_on_a_page_are_those_of_the_makefile():
    targets = set(re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text()))
    named = {
        target
        for page in PAGES
        for targets in _TARGET.findall(page.read_text("utf-8"))
        for target in targets.split()
    }
    assert len(named) > 10
    assert named <= targets

"""Mutation testing: which small changes of the code do a package's own tests notice?

    python -m tests.mutation --seed 5 --number 200 [--package serving/http2] [--seconds 480]

A mutant is a copy of the tree with one change at a place drawn by the seed. The tests that run its
line are started, the fastest first, until one fails. A run that was interrupted goes on.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from serving.commandline.progress import Bar
from tests.mutation.choice import chosen
from tests.mutation.locks import REFUSES, WAITS, Busy, locked
from tests.mutation.places import mutant, places, sources

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
CACHE = ROOT / ".cache" / "mutants"
EQUIVALENT = Path(__file__).parent / "equivalent.tsv"
TESTS = {
    "serving/batching": ["tests/serving/batching"],
    "serving/http2": ["tests/http2"],
    "serving/model": ["tests/serving/model", "tests/serving/versions"],
    "serving/proof": ["tests/proof", "tests/serving/model/test_verdicts.py"],
    "serving/router.py": ["tests/serving/test_router.py", "tests/serving/test_many_models.py"],
    "serving/client": ["tests/serving/client"],
}
"""Each package's own tests; the catalog's are about labels and copies of repositories, too."""
OF_TEXT = (
    "tests/serving/model/test_verdicts.py::test_bundled_manifest_has_the_verdict_of_these_rules",
)
"""Tests that notice any change of a file's text, also one without effect: they are not asked."""
SHARED = ("tests/conftest.py", "tests/serving/conftest.py", "tests/support")
MUTANT_S, TEST_S = 60.0, 20.0
"""How long a mutant's tests may take, and one of them."""


def copied(folder):
    """Copy what git has or would add into a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def digest(tree, paths):
    """Hash the Python files under some paths of the tree."""
    total = hashlib.sha256()
    for path in paths:
        for file in [tree / path] if path.endswith(".py") else sorted((tree / path).rglob("*.py")):
            total.update(f"{file.relative_to(tree)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def environment(tree, **more):
    return os.environ | {"PYTHONPATH": str(tree), "TEST_MADE_IN": str(tree.parent)} | more


def recorded(tree, package):
    """Return which lines the package's own tests run, recorded once for its code and them."""
    name = digest(tree, [package, *TESTS[package], *SHARED])
    kept = CACHE / f"{package.replace('/', '-')}-{name}.json"
    with locked(kept, WAITS):
        if not kept.exists():
            print(f"recording which lines of {package} its tests run", flush=True)
            unfinished = kept.with_suffix(".unfinished")
            subprocess.run(
                [PYTHON, "-m", "pytest", "-q", "-p", "tests.mutation.recording", *TESTS[package],
                 *(f"--deselect={test}" for test in OF_TEXT)],
                cwd=tree, env=environment(tree, MUTATION_RECORD=str(unfinished)), check=False,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            unfinished.rename(kept)
        return json.loads(kept.read_text())


def outcome(tree, tests):
    """Run tests until one fails; return "killed", "survived" or "timed out", and which test."""
    listed = tree.parent / "tests"
    listed.write_text("\n".join(tests))
    quiet = ["-q", "--tb=no", "--no-header", "-p", "no:cacheprovider"]
    started = subprocess.Popen(
        [str(PYTHON), "-m", "pytest", "-x", *quiet, f"--timeout={TEST_S}", f"@{listed}"],
        cwd=tree,
        env=environment(tree, PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = started.communicate(timeout=MUTANT_S)
    except subprocess.TimeoutExpired:
        return "timed out", ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # servers that its tests left, too
        started.wait()
    if started.returncode == 0:
        return "survived", ""
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return ("timed out" if "Timeout (" in output else "killed"), (failed or [output[-300:]])[0]


def drawn(tree, packages, seed, number):
    """Draw places, each as likely as the next, and a mutant of each."""
    generator = random.Random(seed)
    there = {each: [*sources(tree, each)] for each in packages}
    every = [(package, place) for package in packages for path in there[package]
             for place in sorted(places(tree, path))]  # fmt: skip
    generator.shuffle(every)
    for package, place in every:
        if made := mutant(tree, place, generator):
            yield package, made
            number -= 1
        if not number:
            return


def equivalents():
    """Read the changes that no test can notice: file, line before, line after."""
    rows = [line.split("\t") for line in EQUIVALENT.read_text("utf-8").splitlines()[1:]]
    return {tuple(row[:3]) for row in rows}


def key(made):
    """Name a mutant as equivalent.tsv does."""
    return made.path, *(" ".join(text.split()) for text in (made.before, made.after))


def judged(tree, mutants, results, stop_s):
    """Run the mutants that have no result yet, and append their results."""
    records = {}
    known = equivalents()
    bar = Bar(len(mutants), sys.stderr, "ran {} of {} mutants")
    for number, (package, made) in enumerate(mutants):
        bar.advance()
        if number < len(results.read_text().splitlines()):
            continue
        if time.monotonic() > stop_s:
            break
        if key(made) in known:
            result = ("equivalent", "")
        else:
            if package not in records:
                records[package] = recorded(tree, package)
            result = run_one(tree, made, chosen(records[package], tree, made.path, made.line))
        with results.open("a") as file:
            file.write(json.dumps([package, *result]) + "\n")
    bar.clear()
    return [json.loads(line) for line in results.read_text().splitlines()]


def run_one(tree, made, tests):
    if not tests:
        return "survived", "no test runs it"
    file = tree / made.path
    original = file.read_text("utf-8")
    file.write_text(made.text, "utf-8")
    try:
        return outcome(tree, tests)
    finally:
        file.write_text(original, "utf-8")


def table(packages, results):
    """Return a table of packages and outcomes; a time-out counts as killed."""
    counts = Counter((package, result) for package, result, _ in results)
    lines = ["| package | mutants | killed | time-outs | survived | equivalent |", "|---" * 6 + "|"]
    for package in [*packages, "all"]:
        killed, late, survived, same = (
            sum(num for (of, got), num in counts.items() if got == each and package in (of, "all"))
            for each in ("killed", "timed out", "survived", "equivalent")
        )
        total = killed + late + survived
        share = f" ({100 * (killed + late) / total:.1f} %)" if total else ""
        cells = (package, total, f"{killed + late}{share}", late, survived, same)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def show_survivors(mutants, outcomes):
    """Print the change of each mutant that no test noticed."""
    for (_, made), (_, result, why) in zip(mutants, outcomes, strict=False):
        if result == "survived":
            print(f"\n{made.path}:{made.line} {why}")
            print(*(f"- {line}" for line in made.before.splitlines()), sep="\n")
            print(*(f"+ {line}" for line in made.after.splitlines()), sep="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", required=True, help="of the draw")
    parser.add_argument("--number", type=int, default=200, help="mutants to draw")
    parser.add_argument("--package", action="append", choices=TESTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    options = parser.parse_args()
    packages = options.package or list(TESTS)
    stop_s = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder) / "tree")
        CACHE.mkdir(parents=True, exist_ok=True)
        tests = [test for each in packages for test in TESTS[each]]
        name = digest(tree, [*packages, *tests, *SHARED])
        results = CACHE / f"{options.seed}-{options.number}-{name}.jsonl"
        try:
            with locked(results, REFUSES):
                results.touch()
                mutants = list(drawn(tree, packages, options.seed, options.number))
                outcomes = judged(tree, mutants, results, stop_s)
        except Busy as err:
            raise SystemExit(f"tests.mutation: {err}") from None
    show_survivors(mutants, outcomes)
    print(f"\nseed {options.seed}, {len(outcomes)} of {len(mutants)} mutants\n")
    print(table(packages, outcomes))


if __name__ == "__main__":
    main()

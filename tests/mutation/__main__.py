"""Mutation testing: which faults in the code do a package's own tests notice, and which do all?

    python -m tests.mutation --seed 5 --number 200 [--kind hands] [--package serving/http2]

A mutant is a copy of the tree with one change, drawn by the seed: a slip of a tired hand
(`hands.py`), or a small change of an operator or a constant (`places.py`). The package's own tests
that run its line are started, the fastest first, until one fails; if none does, all others that
start no process. A run that was interrupted goes on.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mutation.choice import far, near, nearest, package_of
from tests.mutation.hands import HANDS, optional_arguments, slipped, slips
from tests.mutation.locks import REFUSES, WAITS, Busy, locked

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
CACHE = ROOT / ".cache" / "mutants"
EQUIVALENT = Path(__file__).parent / "equivalent.tsv"
CODE = ("serving", "digit_classifier")
GENERATED = "digit_classifier/pb/"
KINDS = ("hands", "operators")
OF_TEXT = (
    "tests/serving/model/test_verdicts.py::test_bundled_manifest_has_the_verdict_of_these_rules",
)
"""Tests that notice any change of a file's text, also one without effect: they are not asked."""
SHARED = ("tests/conftest.py", "tests/serving/conftest.py", "tests/support")
APART = {"deploy", "interop", "mutation", "packaging", "reliability", "support", "web",
         "test_boundaries.py"}  # fmt: skip
"""What has a target of its own, or reads the code as text."""
TRAINS = "tests/serving/cli/test_commands.py::test_json_is_one_object_a_line_errors_included"
"""A test that uses the model that tests train."""
IN_PROCESS = "not process and not slow"
NEAR_S, FAR_S, TEST_S = 60.0, 120.0, 20.0
"""How long a mutant's near tests may take, its far ones, and one test."""


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
    return os.environ | {"PYTHONPATH": str(tree), "TEST_MADE_IN": str(made_in(tree))} | more


def made_in(tree):
    """The folder of the model that tests train: of the code without a change."""
    return CACHE / f"made-{digest(tree, ['training', 'tests/conftest.py'])}"


def make(tree):
    """Train it, once for all: it takes longer than a mutant's tests may."""
    made_in(tree).mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [PYTHON, "-m", "pytest", "-q", TRAINS], cwd=tree, env=environment(tree),
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


class Records:
    """Which lines the tests of each folder run, recorded once for the code and them."""

    def __init__(self, tree):
        self.tree = tree
        self.nearest = nearest((tree / "docs" / "tour.md").read_text("utf-8"))
        self.of = {}

    def near(self, package):
        return [self._record(tests) for tests in self.nearest[package]]

    def far(self):
        """All tests that start no process, by folder."""
        folders = [each for each in sorted((self.tree / "tests").iterdir()) if tests_in(each)]
        folders += [each for each in sorted((self.tree / "tests/serving").iterdir())
                    if tests_in(each)]  # fmt: skip
        names = [str(each.relative_to(self.tree)) for each in folders]
        return [self._record(name) for name in names
                if name not in ("tests/serving", "tests/training")]  # fmt: skip

    def _record(self, tests):
        if tests not in self.of:
            name = f"{tests.replace('/', '-')}-{digest(self.tree, [*CODE, *SHARED, tests])}"
            kept = CACHE / f"{name}.json"
            with locked(kept, WAITS):
                if not kept.exists():
                    self._make(tests, kept)
                self.of[tests] = json.loads(kept.read_text())
        return self.of[tests]

    def _make(self, tests, kept):
        is_near = any(tests in own for own in self.nearest.values())
        chosen = [] if is_near else ["-m", IN_PROCESS]
        print(f"recording which lines {tests} runs", flush=True)
        unfinished = kept.with_suffix(".unfinished")
        subprocess.run(
            [PYTHON, "-m", "pytest", "-q", "-p", "tests.mutation.recording", tests, *chosen,
             *(f"--deselect={test}" for test in OF_TEXT)],
            cwd=self.tree, env=environment(self.tree, MUTATION_RECORD=str(unfinished)),
            check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        unfinished.rename(kept)


def tests_in(path):
    """Whether a folder or file of tests/ is one of tests that are asked."""
    if path.name in APART:
        return False
    return path.match("test_*.py") or (path.is_dir() and any(path.rglob("test_*.py")))


def fails(tree, tests, limit_s):
    """Run tests until one fails, and return which; None: they pass, or not within the time."""
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
        output, _ = started.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # servers that its tests left, too
        started.wait()
    if started.returncode == 0:
        return None
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or [output[-300:]])[0]


class Mutant:
    """A file with one change."""

    def __init__(self, source, path, operator, line, text):
        self.path, self.operator, self.line, self.text = path, operator, line, text
        self.alone = changed(source, text, is_unique=False)
        self.before, self.after = changed(source, text, is_unique=True)

    def keys(self):
        """Name it as equivalent.tsv does: by what differs, and with lines that make it unique."""
        return {
            (self.path, *(" ".join(text.split()) for text in texts))
            for texts in (self.alone, (self.before, self.after))
        }


def changed(source, text, *, is_unique):
    """Return the lines of two texts that differ, and those before that make them unique."""
    old, new = source.splitlines(), text.splitlines()
    first = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]),
                 min(len(old), len(new)))  # fmt: skip
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    while is_unique and first and source.count("\n".join(old[first : len(old) - last])) != 1:
        first -= 1
    return tuple("\n".join(each[first : len(each) - last]) for each in (old, new))


def drawn(tree, packages, kinds, seed, number):
    """Draw mutants: of each kind as many, of the hands each as likely as the next."""
    generator = random.Random(seed)
    named = nearest((tree / "docs" / "tour.md").read_text("utf-8"))
    files = {
        path: (tree / path).read_text("utf-8")
        for each in CODE
        for path in sorted(str(file.relative_to(tree)) for file in (tree / each).rglob("*.py"))
        if package_of(path, named) in packages and not path.startswith(GENERATED)
    }
    optional = optional_arguments(
        file.read_text("utf-8") for each in CODE for file in (tree / each).rglob("*.py")
    )
    by_hand = {hand.__name__: [] for hand in HANDS}
    if "hands" in kinds:
        for path, source in files.items():
            for slip in slips(source, optional):
                by_hand[slip.operator].append((path, slip))
        for found in by_hand.values():
            generator.shuffle(found)
    known = set()
    vain = 0
    while number and vain < 10_000:
        if generator.choice(kinds) == "hands":
            made = of_a_hand(files, by_hand[generator.choice(list(by_hand))])
        else:
            made = of_an_operator(tree, files, generator)
        if made is None or made.keys() & known:
            vain += 1
            continue
        known |= made.keys()
        number -= 1
        yield package_of(made.path, named), made


def of_a_hand(files, found):
    """Take a slip that compiles, and changes something."""
    while found:
        path, slip = found.pop()
        text = slipped(files[path], slip)
        try:
            if ast.dump(compiled(text)) == ast.dump(compiled(files[path])):
                continue
        except SyntaxError:
            continue
        return Mutant(files[path], path, slip.operator, slip.first, text)
    return None


def compiled(text):
    compile(text, "mutant", "exec")
    return ast.parse(text)


def of_an_operator(tree, files, generator):
    """Draw a place of Cosmic Ray's, which only the environment of `make mutants` has."""
    from tests.mutation.places import mutant, places

    [path] = generator.choices([*files], [source.count("\n") for source in files.values()])
    if found := sorted(places(tree, path)):
        place = generator.choice(found)
        if text := mutant(tree, place, generator):
            return Mutant(files[path], path, "operator", place.begin[0], text)
    return None


def equivalents():
    """Read the changes that no test can notice: file, line before, line after."""
    rows = [line.split("\t") for line in EQUIVALENT.read_text("utf-8").splitlines()[1:]]
    return {tuple(row[:3]) for row in rows}


def judged(tree, mutants, results, stop_s):
    """Run the mutants that have no result yet, append their results, and print the survivors."""
    records = Records(tree)
    known = equivalents()
    judgements = []
    for number, (package, made) in enumerate(mutants):
        kept = results.read_text().splitlines()
        if number < len(kept):
            result, why = json.loads(kept[number])
        elif time.monotonic() > stop_s:
            break
        else:
            result, why = outcome(tree, made, package, records)
            with results.open("a") as file:
                file.write(json.dumps([result, why]) + "\n")
        if made.keys() & known:
            result = "equivalent"
        if result in ("far", "survived"):
            show(made, f"{number + 1} of {len(mutants)}: {result} {why}")
        judgements.append((package, made.operator, result))
    return judgements


def show(made, result):
    print(f"\n{result}\n{made.path}:{made.line} {made.operator}")
    print(*(f"- {line}" for line in made.before.splitlines()), sep="\n")
    print(*(f"+ {line}" for line in made.after.splitlines()), sep="\n", flush=True)


def outcome(tree, made, package, records):
    """Return whether near or far tests notice a mutant, or none, and which one."""
    original = (tree / made.path).read_text("utf-8")
    own = near(records.near(package), original, made.path, made.line)
    if failed := fails_changed(tree, made, own, NEAR_S):
        return "near", failed
    # Recorded only once a mutant needs them: that takes as long as all tests.
    others = far(records.far(), original, made.path, made.line, own)
    if failed := fails_changed(tree, made, others, FAR_S):
        return "far", failed
    return "survived", "" if own or others else "no test runs it"


def fails_changed(tree, made, tests, limit_s):
    """Run tests on a mutant; see `fails`."""
    if not tests:
        return None
    file = tree / made.path
    original = file.read_text("utf-8")
    file.write_text(made.text, "utf-8")
    try:
        return fails(tree, tests, limit_s)
    finally:
        file.write_text(original, "utf-8")


def table(results):
    """Return a table of outcomes by operator and by package; equivalent ones count for nobody."""
    lines = ["| of | mutants | near | in all | survived | equivalent |", "|---" * 6 + "|"]
    groups = [("all", "all"), *((each, "operator") for each in sorted({row[1] for row in results})),
              *((each, "package") for each in sorted({row[0] for row in results}))]  # fmt: skip
    for name, kind in groups:
        own = [row for row in results if name in ("all", row[kind == "operator"])]
        counts = Counter(row[2] for row in own)
        total = len(own) - counts["equivalent"]
        killed = counts["near"], counts["near"] + counts["far"]
        cells = [f"{each} ({100 * each / total:.0f} %)" if total else "" for each in killed]
        row = (name, len(own), *cells, counts["survived"], counts["equivalent"])
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", required=True, help="of the draw")
    parser.add_argument("--number", type=int, default=200, help="mutants to draw")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: both, half each")
    parser.add_argument("--package", action="append", help="of the tour's table; default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    stop_s = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder) / "tree")
        CACHE.mkdir(parents=True, exist_ok=True)
        named = nearest((tree / "docs" / "tour.md").read_text("utf-8"))
        packages = options.package or list(named)
        if unknown := {*packages} - {*named}:
            parser.error(f"docs/tour.md names no tests of {min(unknown)}: {', '.join(named)}")
        drawing = "-".join([options.seed, str(options.number), *kinds])
        drawing = "-".join([drawing, *(each.replace("/", ".") for each in options.package or ())])
        results = CACHE / f"{drawing}-{digest(tree, [*CODE, 'tests'])}.jsonl"
        try:
            with locked(results, REFUSES):
                results.touch()
                make(tree)
                mutants = list(drawn(tree, packages, kinds, options.seed, options.number))
                outcomes = judged(tree, mutants, results, stop_s)
        except Busy as err:
            raise SystemExit(f"tests.mutation: {err}") from None
    print(f"\nseed {options.seed}, {len(outcomes)} of {len(mutants)} mutants\n")
    print(table(outcomes))


if __name__ == "__main__":
    main()

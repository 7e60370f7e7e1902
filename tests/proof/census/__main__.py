"""Make the census of real exports: which kinds of nodes they have, and what is proved of them.

    python -m tests.proof.census FOLDER

FOLDER has a folder for each exporter, and models in it: of scikit_exports.py and keras_exports.py
(tests/proof), of this package's programs, and the .onnx files of packages of PyPI. It
writes serving/proof/census.tsv and tests/proof/exports.tsv; read their differences.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from serving.proof import Mixes, prove
from serving.proof.census import FILE, traits_of, types_of
from serving.proof.onnx_file import cut_zip_maps, parse_model

ROOT = Path(__file__).parents[3]
CENSUS = ROOT / "serving" / "proof" / FILE
EXPORTS = ROOT / "tests" / "proof" / "exports.tsv"
_MOST_BYTES = 600 << 20
HEAD = """\
# Kinds of nodes in real exports (read by census.py, made by python -m tests.proof.census)
# operator; traits of its attributes and parameters; types of its inputs; who exports such a node
"""
BOOSTERS = "lightgbm", "xgboost", "catboost", "XGB"

Kind = tuple[str, frozenset[str], frozenset[str]]


class Recorder:
    """Takes each node, and keeps its kinds."""

    def __init__(self) -> None:
        self.kinds: set[Kind] = set()

    def require_known(self, node) -> None:
        self.kinds.add((node.op, traits_of(node), types_of(node)))


def exporter_of(path: Path) -> str:
    """Return who exports a model: a library, and of torch's two exporters which."""
    folder, name = path.parent.name, path.stem
    if folder == "torch":
        return f"{name.split('-')[0]}-{name.rsplit('-', 1)[-1]}"
    if folder == "sklearn":
        return "boosters" if name.startswith(BOOSTERS) else "sklearn"
    return folder


def record(path: Path) -> tuple[str, set[Kind]]:
    """Return what is proved of a model by the rules alone, and the kinds of its nodes."""
    recorder = Recorder()
    model = parse_model(path.read_bytes())
    cut_zip_maps(model)
    try:
        prove(model, recorder)
    except Mixes as err:
        return str(err), recorder.kinds
    return "proved", recorder.kinds


def lines(folder: Path) -> Iterator[tuple[str, str, str, set[Kind]]]:
    for path in sorted(folder.glob("*/*.onnx")):
        if path.stat().st_size <= _MOST_BYTES:
            yield exporter_of(path), path.stem, *record(path)


def sort_key(kind: Kind) -> tuple[str, list[str], list[str]]:
    operator, traits, types = kind
    return operator, sorted(traits), sorted(types)


def write(folder: Path) -> None:
    found = list(lines(folder))
    exporters: dict[Kind, set[str]] = {}
    for exporter, _, _, kinds in found:
        for kind in kinds:
            exporters.setdefault(kind, set()).add(exporter)
    order = sorted(exporters, key=sort_key)
    numbers = {kind: str(number) for number, kind in enumerate(order)}
    rows = [
        "\t".join([kind[0], *(", ".join(sorted(each)) for each in (*kind[1:], exporters[kind]))])
        for kind in order
    ]
    CENSUS.write_text(HEAD + "\n".join(rows) + "\n", "utf-8")
    exports = [
        "\t".join([exporter, name, verdict, " ".join(sorted(map(numbers.get, kinds), key=int))])
        for exporter, name, verdict, kinds in found
    ]
    EXPORTS.write_text("\n".join(exports) + "\n", "utf-8")
    num_proved = sum(verdict == "proved" for _, _, verdict, _ in found)
    print(f"{len(rows)} kinds of {len(found)} exports, of which {num_proved} are proved")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

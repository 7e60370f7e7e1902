"""What `digit-serving optimize` gains: a table of several models, and their rates through servers.

python -m benchmarks.optimized FOLDER --output results.md

FOLDER has NAME.onnx and NAME.npz of each model; NAME.json, if it is there, has further arguments of
`serving.optimize`, such as {"classes": "logits"}. `--beside triton=HOST:PORT` calls another server
of the Open Inference Protocol in the same rounds, which serves the models as they are by the same
names. Close other programs first.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import serving
from serving import Client, Server, ServingError
from serving.commandline import values
from serving.optimising.report import agreement
from serving.optimising.samples import read_samples
from serving.optimising.served import call_in_turns
from serving.publishing.files import write_atomically
from serving.tensors import Feeds, TensorSignature

CALLERS = (1, 16, 64)
_CALLS = 8
_HEADINGS = (
    "model", "outcome", "alone", "many callers", "gate", "file", *(f"{n} callers" for n in CALLERS),
)  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Optimize the models of a folder, and write the table.

    Returns:
        The exit code: 0, or 1 if there is no model or one could not be tried.
    """
    options = _parser().parse_args(words)
    files = sorted(each for each in options.folder.glob("*.onnx") if _samples_of(each).exists())
    beside = dict(each.split("=", 1) for each in options.beside)
    rows, has_failed = [], not files
    for file in files:
        print(f"{file.stem} ...", file=sys.stderr, flush=True)
        try:
            rows.append(list(_row(file, options.seed, options.time, beside)))
        except ServingError as err:
            has_failed = True
            rows.append([file.stem, f"failed: {err}", *[""] * (len(_HEADINGS) - 2)])
        text = _markdown(rows)
        if options.output:
            write_atomically(options.output, text.encode())
    print(_markdown(rows), end="")
    return int(has_failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimized", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="models and their samples")
    add("--output", type=Path, metavar="FILE.md", help="the table, too")
    add("--seed", type=int, default=0, metavar="N", help="of the split of the samples (0)")
    add("--time", type=values.seconds, default=600.0, metavar="S", help="for each search (600)")
    add(
        "--beside",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT",
        help="another server that serves the same models; may be given again",
    )
    return parser


def _samples_of(file: Path) -> Path:
    """Return a model's samples: an NPZ file, or a folder of these."""
    folder = file.with_suffix("")
    return folder if folder.is_dir() else file.with_suffix(".npz")


def _row(file: Path, seed: int, time_s: float, beside: dict[str, str]) -> Iterator[str]:
    """Yield the cells of one model."""
    more = file.with_suffix(".json")
    arguments = json.loads(more.read_text("utf-8")) if more.exists() else {}
    with tempfile.TemporaryDirectory(prefix="optimized-") as name:
        root = Path(name) / "optimized"
        found = serving.optimize(
            file,
            samples=_samples_of(file),
            name=file.stem,
            models=root,
            seed=seed,
            time_limit_s=time_s,
            progress=sys.stderr,
            **arguments,
        )
        yield file.stem
        chosen = found.chosen
        if found.version is None or chosen is None:
            yield found.reason
            yield from [""] * (len(_HEADINGS) - 2)
            return
        yield f"{chosen.candidate}{'' if chosen.is_batched else ', not batched'}"
        yield str(chosen.alone)
        yield str(chosen.busy)
        yield agreement(chosen.verdict)
        yield f"{found.fp32_bytes / 1e6:.1f} -> {chosen.num_bytes / 1e6:.1f} MB"
        plain = Path(name) / "plain"
        serving.publish(file, file.stem, models=plain)
        yield from _served([plain, root], file, beside)


def _served(roots: Sequence[Path], file: Path, beside: dict[str, str]) -> Iterator[str]:
    """Yield the rates of fp32, of the optimized version and of other servers, by callers."""
    options: dict[str, Any] = {"http_port": None, "metrics_port": None}
    with Server(models=roots[0], **options) as fp32, Server(models=roots[1], **options) as other:
        with Client(fp32.address) as client:
            info = client.describe(file.stem)
        tensors = TensorSignature(info.inputs, info.outputs, info.is_batchable)
        calls: Sequence[Feeds] = read_samples(_samples_of(file), tensors).calls[:_CALLS]
        failed = dict(_failing(beside, file.stem, calls[0]))
        able = {name: address for name, address in beside.items() if name not in failed}
        names = ["fp32", "optimized", *able]
        addresses = [fp32.address, other.address, *able.values()]
        for callers in CALLERS:
            rates = call_in_turns(addresses, file.stem, calls, callers, lambda: None)
            found = [
                f"{name} {median(rate):,.0f} ({min(rate):,.0f} to {max(rate):,.0f})"
                for name, rate in zip(names, rates, strict=True)
            ]
            yield "; ".join([*found, *(f"{name} fails: {why}" for name, why in failed.items())])


def _failing(beside: dict[str, str], model: str, call: Feeds) -> Iterator[tuple[str, str]]:
    """Yield the servers that do not answer a call of a model, and why."""
    for name, address in beside.items():
        try:
            with Client(address) as client:
                client.infer(model, call)
        except ServingError as err:
            yield name, str(err)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write the table; callers' columns are answers a second: median, least and greatest."""
    cells = [_HEADINGS, ["---"] * len(_HEADINGS), *rows]
    return "".join(f"| {' | '.join(each.replace('|', '/') for each in row)} |\n" for row in cells)


if __name__ == "__main__":
    sys.exit(main())

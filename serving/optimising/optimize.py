"""`serving.optimize`: tries faster variants of a model, and publishes the best that holds."""

import base64
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TextIO

import numpy as np

from serving.commandline.installation import version as own_version
from serving.commandline.progress import Bar
from serving.config import BatchingConfig, Device
from serving.errors import ConfigurationError, ServingError
from serving.model.agreement import GOLDEN_FILE
from serving.model.loaded import LoadedModel
from serving.model.manifest import FILES
from serving.model.repository import find, require_onnx
from serving.optimising import served as serving_it
from serving.optimising.candidates import Maker
from serving.optimising.gate import (
    LEAST_SAMPLES,
    Answers,
    Gate,
    GateLimits,
    comparison_of,
    labelled_output,
    read_score,
    shown_by,
)
from serving.optimising.measure import LEAST_GAIN, Meter, batch_rows
from serving.optimising.result import Optimization, TriedCandidate, passing
from serving.optimising.samples import CallSamples, SamplesSource, read_samples
from serving.optimising.search import (
    FINAL_ROUNDS,
    FINALISTS,
    Bench,
    Deadline,
    Search,
    answers_of,
    fp32_answers,
    load,
    measured,
)
from serving.optimising.source import (
    NothingToGain,
    OptimizedSource,
    prepared,
    read_source,
    require_extra,
    workplace,
)
from serving.publishing.golden import golden_entry, golden_file
from serving.publishing.manifest import digests, golden, render
from serving.publishing.models import mark_of, require_name
from serving.publishing.writer import write_version
from serving.system.usage import processor
from serving.tensors import Feeds

_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "neon", "asimd",
    "asimddp", "i8mm", "sve",
)  # fmt: skip
"""What decides how bytes are multiplied."""
_GATE_S = 20.0
"""How long fp32 may take for the samples that are held out; more of them are left out."""
_GOLDEN_CALLS, _GOLDEN_BYTES, _GOLDEN_S = 128, 4 << 20, 1.0
"""The most golden calls of a version: their number, their bytes, and the seconds they take here."""
_SEARCH_SHARE = 0.7
"""The share of the time that the search may take."""
TIME_S = 600.0


def optimize(
    model: str | Path,
    *,
    samples: SamplesSource,
    name: str = "",
    models: str | Path = "models",
    version: str | int | None = None,
    classes: str = "",
    score: str = "",
    limits: GateLimits | None = None,
    few_samples: bool = False,
    portable: bool = False,
    new_signature: bool = False,
    device: Device = "auto",
    seed: int = 0,
    time_limit_s: float = TIME_S,
    progress: TextIO | None = None,
) -> Optimization:
    """Try to make a model faster, and publish the best variant as the next version.

    Static int8, 8-bit weights and others are made by ONNX Runtime's quantizers. A gate compares
    their answers with the model's own on samples that calibration did not see. What passes is
    measured on the engine that serves, in turns with the model as it is, and once more through a
    server. Nothing is published that the gate refuses, or that is not 1.1 times as fast. Needs the
    extra `optimize`.

    Args:
        model: an ONNX file, or the name of a model in the repository.
        samples: calls that the model gets: an NPZ file with an array for each input by its name,
            (N, ...), and optionally `labels`, (N,) integers; a folder of such files where sizes
            differ; or a mapping of arrays.
        name: what to publish the best as; empty to publish nothing.
        models: the repository's root.
        version: the version to start from; None for the one that a server answers with.
        classes: the output whose rows are scores of classes; empty to find it.
        score: a function of your own as FILE.py:function. It gets a list of one mapping of outputs
            for each sample, and a list of the samples' arrays, and returns a number; more is
            better. It decides in place of the comparison of outputs.
        limits: what a variant may lose.
        few_samples: whether to publish although the samples are fewer than 100, or leave room for a
            larger loss of accuracy.
        portable: whether to try only what answers alike on x86 processors without VNNI.
        new_signature: whether to publish under a name whose newest version has other inputs or
            outputs.
        device: where it is going to be served: auto, cpu or cuda.
        seed: of the split of the samples.
        time_limit_s: seconds after which the search takes what it has.
        progress: where to show a progress bar, such as sys.stderr; None for none.

    Returns:
        All that was tried with its figures, what was chosen and why, and the new version's folder.

    Raises:
        ConfigurationError: an option, the model or the samples can't be used, or the extra is
            missing.
        CorruptModel: the model is damaged.
        ServingError: it can't be served.
    """
    require_extra()
    if name:
        require_name(name)
    deadline = Deadline(time_limit_s)
    half = Deadline(_SEARCH_SHARE / 2 * time_limit_s)
    search_end = Deadline(_SEARCH_SHARE * time_limit_s)
    root = Path(models)
    path = Path(model)
    require_onnx(path)
    place = path if path.suffix.lower() == ".onnx" or path.exists() else find(root, str(model))
    source = read_source(place, None if version is None else str(version))
    limits = limits or GateLimits()
    function = read_score(score) if score else None
    with workplace() as folder:
        base = load(source, folder / "fp32", source.onnx, device)
        given = read_samples(samples, base.tensors)
        calibration, held_out = given.split(seed)
        notes = _notes(given, held_out, few_samples=few_samples)
        held_out, left_out = _bounded(base, held_out)
        if left_out:
            notes.append(f"{left_out:,} samples were left out, so that the gate is in time")
        bar = Bar(len(calibration) + len(held_out), progress, "answered {} of {} samples")
        wanted = [fp32_answers(base, each, bar.advance) for each in (calibration, held_out)]
        bar.clear()
        comparison = comparison_of([*wanted[0], *wanted[1]], limits.agreement, classes)
        labelled = ""
        if held_out.labels is not None and function is None:
            labelled = labelled_output(wanted[1], comparison.kinds, held_out.labels)
            kinds = {**comparison.kinds, labelled: "classes"}
            comparison = replace(comparison, kinds=kinds)
        gates = tuple(
            Gate(each, answers, comparison, labelled, limits, function)
            for each, answers in zip((calibration, held_out), wanted, strict=True)
        )
        settings = base.settings.of(BatchingConfig())
        rows = batch_rows(base, held_out.calls, settings.max_batch_size)
        facts = Optimization(
            name=name or source.name,
            tried=(),
            chosen=None,
            reason="",
            is_batched=base.tensors.is_batchable,
            fp32_bytes=len(source.onnx) + sum(map(len, source.weights.values())),
            num_calibration=len(calibration),
            num_held_out=len(held_out),
            notes=tuple(notes),
            processor=processor_name(base.device),
        )
        try:
            ready = prepared(source, _made(folder / "graphs"))
        except NothingToGain as err:
            return replace(facts, reason=f"nothing to gain: {err}")
        bar = Bar(_STEPS, progress, "tried {} of {}")
        assert len(gates) == 2
        bench = Bench(
            source=source,
            folder=folder,
            base=base,
            gates=(gates[0], gates[1]),
            meter=Meter(held_out.calls, rows),
            device=device,
            is_half=half.is_late,
            is_late=search_end.is_late,
            progress=bar.advance,
        )
        search = Search(bench, Maker(ready, folder / "graphs", calibration.calls))
        search.run(is_portable=portable)
        found = _decided(bench, search, facts, deadline, few_samples=few_samples)
        bar.clear()
        if found.chosen is None or not name:
            return found
        too_few = len(given) < LEAST_SAMPLES and not few_samples
        if too_few:
            reason = (
                f"not published: {found.reason}, but {len(given)} samples are too few: "
                f"{LEAST_SAMPLES} expected, or --few-samples"
            )
            return replace(found, reason=reason)
        new = _published(bench, search, found, root / name, given, limits, new_signature, seed)
        return replace(found, version=new)


_STEPS = 20
"""Candidates, their variants and the rounds at the end: more or less."""


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _notes(given: CallSamples, held_out: CallSamples, *, few_samples: bool) -> list[str]:
    notes = []
    if given.num_copies:
        notes.append(f"copies of other samples were left out: {given.num_copies:,}")
    if len(given) < 3 * LEAST_SAMPLES:
        notes.append(shown_by(len(held_out)))
    return notes


def _bounded(base: LoadedModel, held_out: CallSamples) -> tuple[CallSamples, int]:
    """Return as many of the samples as fp32 runs in time, and the number of the others."""
    from time import perf_counter  # late: of this one place

    try:
        begin_s = perf_counter()
        for call in held_out.calls[:3]:
            base.run(call)
        run_s = (perf_counter() - begin_s) / min(3, len(held_out))
    except ServingError:  # the sample is named when all are run
        return held_out, 0
    most = max(LEAST_SAMPLES, int(_GATE_S / max(run_s, 1e-6)))
    if len(held_out) <= most:
        return held_out, 0
    return held_out.take(range(most)), len(held_out) - most


def _decided(
    bench: Bench, search: Search, facts: Optimization, deadline: Deadline, *, few_samples: bool
) -> Optimization:
    """Measure the fastest candidates longer, and the best of them through a server.

    Where none of these holds, the next ones have their turn, while there is time.
    """
    waived = [
        replace(each, reason="") if _is_waived(each, few_samples=few_samples) else each
        for each in search.tried
    ]
    found = replace(facts, tried=tuple(waived))
    left = passing(waived)
    while left:
        found = _confirmed(bench, search, found, left[:FINALISTS])
        left = left[FINALISTS:]
        if found.chosen is not None:
            return found
        if deadline.is_late():
            late = {each.candidate: replace(each, reason="no time to confirm it") for each in left}
            tried = [late.get(each.candidate, each) for each in found.tried]
            found = replace(found, tried=tuple(tried))
            break
    return replace(found, reason=_why_not(found.tried))


def _confirmed(
    bench: Bench, search: Search, found: Optimization, best: Sequence[TriedCandidate]
) -> Optimization:
    """Measure candidates longer, then through a server; choose the first one that holds."""
    numbers = {each.candidate: number for number, each in enumerate(found.tried)}
    loaded = {
        str(numbers[each.candidate]): load(
            bench.source,
            bench.folder / f"final-{numbers[each.candidate]}",
            search.files[each.candidate],
            bench.device,
        )
        for each in best
    }
    rates = bench.meter.measure({"fp32": bench.base, **loaded}, FINAL_ROUNDS, lambda: None)
    bench.progress()
    finals = [measured(each, rates[str(numbers[each.candidate])], rates["fp32"]) for each in best]
    finals = [_slow(each) if _is_slow(each) else each for each in finals]
    tried = tuple(_replaced(found.tried, finals))
    found = replace(found, tried=tried, fp32=rates["fp32"])
    for each in passing(finals):
        number = numbers[each.candidate]
        try:
            callers = serving_it.measure_served(
                [bench.folder / "fp32", bench.folder / f"final-{number}"],
                bench.source.name,
                bench.gates[1].samples.calls[:4],
                bench.progress,
                bench.device,
            )
            why = serving_it.is_confirmed(callers)
        except ServingError as err:
            callers, why = [], f"it could not be served: {err}"
        if not why:
            return replace(found, chosen=each, served=tuple(callers), reason=_gained(each))
        refused = replace(each, reason=f"not confirmed: {why}")
        found = replace(found, tried=tuple(_replaced(found.tried, [refused])))
    return found


def _is_waived(tried: TriedCandidate, *, few_samples: bool) -> bool:
    """Return whether only more samples could show that the gate holds, and none are asked for."""
    needs_samples = tried.verdict is not None and tried.verdict.needs_samples
    return few_samples and needs_samples and tried.gain >= LEAST_GAIN


def _is_slow(tried: TriedCandidate) -> bool:
    return tried.gain < LEAST_GAIN or not tried.is_sure or tried.is_slow_alone


def _slow(tried: TriedCandidate) -> TriedCandidate:
    if tried.is_slow_alone:
        return replace(tried, reason=f"slower alone: {tried.alone} times fp32's rate")
    if tried.gain < LEAST_GAIN:
        return replace(tried, reason=f"not faster: {tried.gain:.2f} times fp32's rate")
    words = f"{tried.gain:.2f} times fp32's rate, but its worst round is not above fp32's best"
    return replace(tried, reason=f"not sure: {words}")


def _replaced(
    tried: Sequence[TriedCandidate], new: Sequence[TriedCandidate]
) -> list[TriedCandidate]:
    by_candidate = {each.candidate: each for each in new}
    return [by_candidate.get(each.candidate, each) for each in tried]


def _gained(each: TriedCandidate) -> str:
    assert each.alone is not None
    assert each.busy is not None
    return f"{each.candidate}: {each.alone} times as fast alone, {each.busy} with many callers"


def _why_not(tried: Sequence[TriedCandidate]) -> str:
    """Say why nothing is gained: by the fastest candidate, and by the fastest that is right."""
    if not tried:
        return "nothing gained: no candidate was tried in time"
    best = max(tried, key=lambda each: (each.rates is not None, each.gain))
    words = f"nothing gained: the fastest is {best.candidate}: {best.reason}"
    right = [each for each in tried if each.verdict is not None and not each.verdict.reason]
    if not right or best in right:
        return words
    other = max(right, key=lambda each: each.gain)
    return f"{words}; of those that the gate passes {other.candidate}: {other.reason}"


def processor_name(device: Device) -> str:
    """Return the processor, its features that matter, and the device."""
    facts = processor()
    name = re.search(r"model name\s*: (.*)", facts)
    words = set(facts.split())
    features = [each for each in _FEATURES if each in words]
    shown = name[1].strip() if name else platform.machine()
    return f"{shown} ({', '.join(features) or 'no features known'}), {device}"


def _published(
    bench: Bench,
    search: Search,
    found: Optimization,
    target: Path,
    given: CallSamples,
    limits: GateLimits,
    new_signature: bool,
    seed: int,
) -> Path:
    """Write the chosen candidate as the next version."""
    assert found.chosen is not None
    source = bench.source
    data = search.files[found.chosen.candidate].read_bytes()
    mark = mark_of(data, target, is_new_allowed=new_signature, document=source.document)
    model = load(
        source, bench.folder / "published", search.files[found.chosen.candidate], bench.device
    )
    calls, answers = _golden_calls(model, bench.gates[1].samples.calls)
    comparison = replace(bench.gates[1].comparison, limits=limits.agreement)
    files = {FILES["fp32"]: data, GOLDEN_FILE: golden_file(calls, answers)}
    entry = golden_entry(comparison, gated_on=found.processor)
    kept = {
        each: source.document[each]
        for each in ("signature", "preprocessing", "recipe", "seed", "settings", "parameters")
        if each in source.document
    }
    if "signature" in kept:
        kept["accuracy"] = {"validation": None, "test": _accuracy(found.chosen)}
        entry |= _golden_images(model, source)
    facts = _origin(source, found, given, limits, seed)

    def version_files(version: str) -> dict[str, bytes]:
        contents = {
            **kept,
            "files": digests(files),
            "libraries": _libraries(),
            "optimized": facts,
            "golden": entry,
        }
        return {**files, **mark, "manifest.json": render(target.name, version, contents)}

    try:
        return write_version(target, version_files)
    except OSError as err:
        reason = f"not published, can't write {target}: {err.strerror}"
        raise ConfigurationError(reason) from err


def _accuracy(chosen: TriedCandidate) -> float | None:
    verdict = chosen.verdict
    return None if verdict is None or verdict.loss is None else float(verdict.loss.accuracy)


def _golden_images(model: LoadedModel, source: OptimizedSource) -> dict[str, object]:
    """Return the golden images of the version that this was made of, with its own answers."""
    pixels = base64.b64decode(source.document["golden"]["images"])
    width = model.tensors.inputs[0].row_bytes
    images = np.frombuffer(pixels, np.uint8).reshape(-1, width)
    return golden(images, {"fp32": model.classify(images)})


def _golden_calls(model: LoadedModel, calls: Sequence[Feeds]) -> tuple[list[Feeds], Answers]:
    """Return calls to keep with the version's own answers: as many as a load has time for."""
    from time import perf_counter  # late: see above

    kept: list[Feeds] = []
    found: list[dict[str, object]] = []
    num_bytes, begin_s = 0, perf_counter()
    for call in calls[:_GOLDEN_CALLS]:
        (answer,) = answers_of(model, [call])
        num_bytes += sum(each.nbytes for each in (*call.values(), *answer.values()))
        if kept and (num_bytes > _GOLDEN_BYTES or perf_counter() - begin_s > _GOLDEN_S):
            break
        kept.append(call)
        found.append(dict(answer))
    return kept, found  # type: ignore[return-value]


def _origin(
    source: OptimizedSource, found: Optimization, given: CallSamples, limits: GateLimits, seed: int
) -> dict[str, object]:
    """Return the manifest's field `optimized`."""
    chosen = found.chosen
    assert chosen is not None
    assert chosen.verdict is not None
    verdict = chosen.verdict
    return {
        "from": {"name": source.name, "version": source.version, "files": dict(source.digests)},
        "by": {"digit-serving": own_version(), "candidate": str(chosen.candidate)}
        | {"settings": asdict(chosen.candidate)},
        "samples": {
            "sha256": given.digest,
            "calibration": found.num_calibration,
            "held_out": found.num_held_out,
            "seed": seed,
        },
        "gate": {
            "found": str(verdict),
            "outputs": [asdict(each) for each in verdict.agreements],
            "loss": None if verdict.loss is None else asdict(verdict.loss),
            "score": verdict.score,
            "fp32_score": verdict.fp32_score,
            "limits": asdict(limits),
        },
        "gain": {
            "alone": None if chosen.alone is None else asdict(chosen.alone),
            "busy": None if chosen.busy is None else asdict(chosen.busy),
            "served": [asdict(each) for each in found.served],
        },
        "processor": found.processor,
    }


def _libraries() -> dict[str, str]:
    names = "onnxruntime", "onnx", "onnx_ir", "numpy"
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu has its module's name
            continue
    return {**found, "python": platform.python_version()}

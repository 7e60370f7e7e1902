"""The search: candidates are made, gated and measured; the layers that lose most are left out."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.config import BatchingConfig, Device
from serving.errors import ConfigurationError, InvalidRequest, ModelError, ServingError
from serving.model.loaded import LoadedModel
from serving.model.loading import load_model
from serving.optimising.candidates import Candidate, Maker, NotMade, first_candidates
from serving.optimising.gate import Answers, Gate, GateVerdict
from serving.optimising.losses import left_out, losses
from serving.optimising.measure import LEAST_GAIN, Gain, Meter, Rates
from serving.optimising.result import TriedCandidate
from serving.optimising.samples import CallSamples
from serving.optimising.source import OptimizedSource, write_version_of
from serving.system.cores import usable_cores
from serving.tensors import Array, Feeds

_QUICK_ROUNDS, FINAL_ROUNDS = 3, 7
_FAR, _FAR_KEPT = 5.0, 1.5
"""How many times as far as the limits answers to the calibration's samples are, if those that are
held out are not looked at: of first candidates, and of those with layers in fp32."""
_MOST_KEPT = 0.5
"""The share of the layers that may stay fp32: with more nothing is left to gain."""
FINALISTS = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bench:
    """What candidates are compared with, and where."""

    source: OptimizedSource
    folder: Path
    base: LoadedModel
    gates: tuple[Gate, Gate]
    """Of the samples that are calibrated with, and of those that are held out."""
    meter: Meter
    device: Device
    is_half: Callable[[], bool]
    """Whether half of the time is over: layers are left out in the other half."""
    is_late: Callable[[], bool]
    progress: Callable[[], None]


def load(source: OptimizedSource, folder: Path, file: Path | bytes, device: Device) -> LoadedModel:
    """Load a graph as a server does, out of a repository of its own.

    Raises:
        ServingError: it can't be served.
    """
    model = write_version_of(source, folder, file)
    return load_model(
        model,
        "1",
        device,
        max_batch_size=BatchingConfig().max_batch_size,
        most_threads=usable_cores(),
        tries_file=True,
    )


def answers_of(model: LoadedModel, calls: Sequence[Feeds]) -> list[Mapping[str, Array]]:
    """Run calls, each alone; what fails is answered with nothing."""
    names = [each.name for each in model.tensors.outputs]
    found: list[Mapping[str, Array]] = []
    for call in calls:
        try:
            found.append(dict(zip(names, model.run(call), strict=True)))
        except (InvalidRequest, ModelError):
            found.append({})
    return found


def fp32_answers(model: LoadedModel, samples: CallSamples, progress: Callable[[], None]) -> Answers:
    """Run the samples by the model as it is.

    Raises:
        ConfigurationError: it refuses one, or answers with numbers that are not finite; all answers
            are alike.
    """
    names = [each.name for each in model.tensors.outputs]
    found: list[Mapping[str, Array]] = []
    for number, call in enumerate(samples.calls):
        try:
            answer = dict(zip(names, model.run(call), strict=True))
        except (InvalidRequest, ModelError) as err:
            raise ConfigurationError(f"the model refuses sample {number}: {err}") from err
        for name, array in answer.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ConfigurationError(
                    f"the model answers sample {number} with numbers that are not finite: {name}"
                )
        found.append(answer)
        progress()
    first = found[0]
    if len(found) > 1 and all(
        all(np.array_equal(each[name], first[name]) for name in names) for each in found[1:]
    ):
        raise ConfigurationError(
            f"the model answers all {len(found):,} samples alike, which shows nothing"
        )
    return found


class Search:
    """Tries candidates of one model, one after the other."""

    def __init__(self, bench: Bench, maker: Maker) -> None:
        """Try nothing yet.

        Args:
            bench: what candidates are compared with.
            maker: makes them.
        """
        self._bench, self._maker = bench, maker
        self.tried: list[TriedCandidate] = []
        self.files: dict[Candidate, Path] = {}

    def run(self, *, is_portable: bool) -> list[TriedCandidate]:
        """Try all candidates, and leave layers out of those that are fast and wrong.

        Args:
            is_portable: whether only what answers alike on any x86 processor is tried.
        """
        is_batched = self._bench.base.tensors.is_batchable
        for candidate in first_candidates(is_batched=is_batched, is_portable=is_portable):
            if not self._bench.is_half():
                self._try(candidate)
            self._bench.progress()
        for base in self._bases():
            self._leave_out(base)
        return self.tried

    def _try(self, candidate: Candidate) -> TriedCandidate:
        found, file = self._tried(candidate)
        self.tried.append(found)
        if file is not None:
            self.files[candidate] = file
        return found

    def _tried(self, candidate: Candidate) -> tuple[TriedCandidate, Path | None]:
        """Make, load, gate and measure a candidate."""
        bench = self._bench
        place = bench.folder / f"tried-{len(self.tried)}"
        try:
            file = self._maker.make(candidate)
            model = load(bench.source, place, file, bench.device)
        except NotMade as err:
            return TriedCandidate(candidate=candidate, reason=f"not made: {err}"), None
        except ServingError as err:
            return TriedCandidate(candidate=candidate, reason=f"not loaded: {err}"), None
        finally:
            shutil.rmtree(place, ignore_errors=True)
        rates = bench.meter.measure({"fp32": bench.base, "it": model}, _QUICK_ROUNDS, lambda: None)
        found = measured(
            TriedCandidate(
                candidate=candidate,
                is_batched=model.tensors.is_batchable,
                num_bytes=file.stat().st_size,
            ),
            rates["it"],
            rates["fp32"],
        )
        is_fast = found.gain >= LEAST_GAIN
        verdict = self._judged(model, _FAR_KEPT if candidate.kept else _FAR, is_fast=is_fast)
        found = replace(found, verdict=verdict)
        if verdict.reason:
            return replace(found, reason=f"refused: {verdict.reason}"), file
        if found.is_slow_alone:
            return replace(found, reason=f"slower alone: {found.alone} times fp32's rate"), file
        if not is_fast:
            shown = f"{found.gain:.2f} times fp32's rate"
            return replace(found, reason=f"not faster: {shown}{_unbatched(found, bench)}"), file
        return found, file

    def _judged(self, model: LoadedModel, far: float, *, is_fast: bool) -> GateVerdict:
        """Return what the gate says: of the held-out samples, unless that is needless."""
        first, second = self._bench.gates
        answers = answers_of(model, first.samples.calls)
        if not is_fast or first.is_hopeless(answers, far):
            return first.judge(answers)
        return second.judge(answers_of(model, second.samples.calls))

    def _bases(self) -> list[Candidate]:
        """Return the static candidates that are worth leaving layers out of: fast, and refused."""
        fit = [
            each
            for each in self.tried
            if each.candidate.kind == "int8"
            and each.verdict is not None
            and each.reason.startswith("refused")
            and not each.verdict.needs_samples
            and each.gain >= LEAST_GAIN
        ]
        best = [
            max(some, key=lambda each: (_closeness(each), each.gain)).candidate
            for some in (
                [each for each in fit if not each.candidate.only_products],
                [each for each in fit if each.candidate.only_products],
            )
            if some
        ]
        passing = max((each.gain for each in self.tried if not each.reason), default=0.0)
        gains = {each.candidate: each.gain for each in fit}
        return [each for each in best if gains[each] > passing]

    def _leave_out(self, base: Candidate) -> None:
        """Leave more and more layers in fp32, until the gate holds or the gain is gone."""
        bench = self._bench
        if bench.is_late():
            return
        try:
            found = losses(
                self._maker.file,
                self._maker.make(base, keeps_activations=True),
                bench.gates[0].samples.calls,
                bench.is_late,
            )
        except Exception:  # of ONNX Runtime, which has no common base: it can't run the switches
            return
        for nodes in left_out(found, _MOST_KEPT):
            if bench.is_late():
                return
            tried = self._try(base.keeping(nodes))
            bench.progress()
            if not tried.reason.startswith("refused") or tried.gain < LEAST_GAIN:
                return


def _closeness(each: TriedCandidate) -> float:
    return each.verdict.agreement if each.verdict is not None else 0.0


def _unbatched(found: TriedCandidate, bench: Bench) -> str:
    lost = bench.base.tensors.is_batchable and not found.is_batched
    return ", since its rows can't share runs" if lost else ""


def measured(tried: TriedCandidate, rates: Rates, fp32: Rates) -> TriedCandidate:
    """Return a candidate with the figures of a measurement.

    Args:
        tried: the candidate.
        rates: its own.
        fp32: those of the model as it is, in the same rounds.
    """
    return replace(
        tried,
        rates=rates,
        alone=Gain.of(rates.alone, fp32.alone),
        busy=Gain.of(rates.busy, fp32.busy),
    )


class Deadline:
    """When the search ends, so that what comes after it is in time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now.

        Args:
            seconds: for all.
            clock: seconds that only grow.
        """
        self._clock = clock
        self._until_s = clock() + seconds

    def is_late(self) -> bool:
        """Return whether the time is over."""
        return self._clock() > self._until_s

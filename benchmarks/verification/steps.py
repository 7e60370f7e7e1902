"""A GPU verified a step at a time: train, export, compare answers, measure; into one results file.

A step that fails is one line, in the file too, and the others still run. None of this has run on
a GPU; the rehearsal takes the same steps in short, without those that need one.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.run import agreement, environment, measurement
from benchmarks.run.measurement import Sources
from benchmarks.run.result_file import Results, Step
from benchmarks.targets.target import NotMeasured, Spec
from benchmarks.verification import training
from benchmarks.verification.plan import Plan
from serving.model.acceptance import GOLDEN_TOLERANCE
from serving.model.repository import find_root

_NO_GPU = "needs a GPU; this is the rehearsal"
_ROUNDED = ("engine-tf32", "engine-fp16")
"""Engines whose answers may differ: the table says by how much."""
_TRAIN_LIMIT_S, _LIMIT_S = 420.0, 180.0
"""Of a training, and of any other program: the whole should stay within 25 minutes."""


def verify(plan: Plan, progress: Callable[[str], None]) -> Results:
    """Take the steps one after the other; the file is written again after each.

    Args:
        plan: what to do.
        progress: called with a line for each measurement.

    Returns:
        What is in the file. A step that failed has a reason.
    """
    shutil.rmtree(plan.work, ignore_errors=True)
    verification = _Verification(plan, progress)
    results = verification.results
    for number, (name, step) in enumerate(verification.steps.items(), start=1):
        print(f"\nstep {number} of {len(verification.steps)}: {name}", flush=True)
        begin_s, reason = perf_counter(), ""
        try:
            step()
        except NotMeasured as err:
            reason = str(err)
        except Exception as err:  # whatever it is: the other steps still run
            reason = f"{type(err).__name__}: {err}"
        if reason:
            reason = " ".join(reason.split())
            print(
                f"python -m benchmarks: {name}: not measured: {reason}", file=sys.stderr, flush=True
            )
        seconds = round(perf_counter() - begin_s, 1)
        results.steps.append(Step(name=name, seconds=seconds, reason=reason))
        results.save(plan.output)
    return results


def has_failed(results: Results) -> bool:
    """Return whether a step failed that was due: the rehearsal's need no GPU."""
    return any(step.reason not in ("", _NO_GPU) for step in results.steps)


class _Verification:
    """The steps, and what one leaves to the next."""

    def __init__(self, plan: Plan, progress: Callable[[str], None]) -> None:
        self._plan, self._progress = plan, progress
        self.results = measurement.begin(plan.suite, self._sources)
        self.results.training = []
        self._options = ["--data-dir", str(plan.data_dir)] if plan.data_dir else []
        self.steps: dict[str, Callable[[], None]] = {
            "find a GPU": self._find_gpu,
            "train on cuda": partial(self._train, "cuda"),
            "train on cpu": partial(self._train, "cpu"),
            "export": self._export,
            "compare answers": self._compare,
            "measure rates": self._measure,
        }

    @property
    def _sources(self) -> Sources:
        """What was exported, or the bundled model if nothing was."""
        return Sources(models=find_root("digits", self._plan.work / "models"))

    def _find_gpu(self) -> None:
        self._need_gpu()
        if not (name := self.results.environment["gpu"]):
            raise NotMeasured("nvidia-smi names none")
        print(f"  {name}, driver {self.results.environment['gpu_driver']}")

    def _need_gpu(self) -> None:
        if self._plan.device == "cpu":
            raise NotMeasured(_NO_GPU)

    def _train(self, device: str) -> None:
        """Train `default` on a device, and on no other."""
        if device == "cuda":
            self._need_gpu()
        folder, epochs = self._plan.work / device, self._plan.epochs
        options = ["--recipe", "default", "--artifacts", str(folder), *self._options]
        options += ["--epochs", str(epochs)] if epochs else []
        training.call(["train", *options], _TRAIN_LIMIT_S, device)
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
        assert metrics["device"] == device
        self.results.training.append({
            "recipe": f"default, epochs: {epochs}" if epochs else "default", "device": device,
            "seconds": metrics["train_seconds"], "accuracy": metrics["accuracy"]["test"],
        })  # fmt: skip

    def _export(self) -> None:
        """Export what the GPU trained; else what the CPU did."""
        trained = (self._plan.work / device for device in ("cuda", "cpu"))
        artifacts = next((each for each in trained if (each / "metrics.json").is_file()), None)
        if artifacts is None:
            raise NotMeasured("nothing was trained; what follows is of the bundled model")
        models = ("--artifacts", str(artifacts), "--models", str(self._plan.work / "models"))
        training.call(["export", *models, *self._options], _LIMIT_S)
        cores = self.results.environment["cores_for"]
        self.results.environment = environment.describe(self._sources.models, cores)

    def _compare(self) -> None:
        """Compare each engine's answers to the test images with the CPU's, at every size."""
        folder = training.call(["data", *self._options], _LIMIT_S)
        images, labels = training.test_images(Path(folder))
        failures = []
        for spec in self._plan.suite.specs:
            is_other = spec != Spec(target="engine") and spec.precision == "fp32"
            if spec.device != self._plan.device or not is_other:
                continue
            self._progress(f"answers of {spec}")
            try:
                found = agreement.compare(
                    spec, self._sources.models, images, labels, self._plan.sizes
                )
            except NotMeasured as err:
                failures.append(f"{spec}: {err}")
                continue
            self.results.agreements += found
            most = max(each.max_difference for each in found)
            if most > GOLDEN_TOLERANCE and spec.target not in _ROUNDED:
                failures.append(
                    f"{spec} is off by {most:.2g}, at most {GOLDEN_TOLERANCE:g} expected"
                )
        if failures:
            raise NotMeasured("; ".join(failures))

    def _measure(self) -> None:
        measurement.measure(self._plan.suite, self._sources, self.results, self._progress)

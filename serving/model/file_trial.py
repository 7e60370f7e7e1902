"""The first try of an unknown file, in a process of its own: a file that ends it ends no server.

ONNX Runtime ends its process for some files: a BatchNormalization of opset 9 with four outputs that
have no name is a SIGSEGV, a Split of two parts with three outputs an abort. So a file that has not
passed before is parsed, proved, built and run once by a child, on the CPU. The child has ended
before this process builds its own session, so that there are never two.

    PARSING ──▶ PROVING ──▶ BUILDING ──▶ RUNNING ──▶ it has passed

    the child              in PROVING                              in another step
    ends by a signal       the version is refused                  likewise
    takes too long         not proved, and a second child goes on  the version is refused
    lacks memory           likewise                                not tried: the server goes on
    can't be started       not tried                               not tried
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from serving.errors import (
    CorruptModel,
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    Overloaded,
    TooLarge,
)
from serving.model import verdicts
from serving.model.engine import OnnxEngine
from serving.model.onnx_runtime import SessionSettings, runtime
from serving.model.time_limit import SLOW_S, within
from serving.model.verdicts import Verdict
from serving.proof.drawn_inputs import draws
from serving.proof.onnx_file import cut_zip_maps, parse_model
from serving.system.usage import available_bytes
from serving.tensors import Array

_log = logging.getLogger(__name__)
_PASSED = Verdict("it has passed")
"""Kept for a file that a child has built and run: no verdict on its rows."""
_PROOF = "the proof that rows are independent"
_START_S = 30.0
"""Beside the steps, on the clock."""
_CLOCK_FACTOR = 3
"""How many times their limits of processor time steps may take on the clock."""


class Step(IntEnum):
    """What a child does; each begins once the one before has ended."""

    PARSING, PROVING, BUILDING, RUNNING = range(1, 5)


_DOES = {Step.PARSING: "parses", Step.PROVING: "proves", Step.BUILDING: "builds",
         Step.RUNNING: "runs"}  # fmt: skip


class File(NamedTuple):
    """A version as it is in its files."""

    name: str
    """The model's and the version's, for the log."""
    onnx: bytes
    weights: Mapping[str, bytes]
    """The content of files with weights, by their location in the model."""
    digests: tuple[str, ...]
    """SHA-256 of all of these."""
    settings: SessionSettings
    """How it will be built; a child builds it on the CPU."""
    images: Array | None
    """Rows of its only input, if its manifest has some."""
    build_s: float
    check_s: float
    """Processor time for a proof and a build, and for runs."""

    @property
    def key(self) -> str:
        """The name of the record that it has passed, by all that this rests on."""
        parts = [*self.digests, repr(self.settings), runtime().__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Tried(NamedTuple):
    """The outcome of a try."""

    verdict: Verdict | None = None
    """Whether rows are independent; None if that was not asked for, or not tried."""
    is_lasting: bool = False
    """Whether another try would have the same verdict."""


def has_passed(file: File) -> bool:
    """Return whether a child has built and run a file, in an earlier start."""
    return verdicts.kept(file.key) == _PASSED


def try_file(file: File, *, needs_verdict: bool) -> Tried:
    """Have a child parse, prove, build and run a file.

    Raises:
        CorruptModel: it ends the process that does so, or takes too long.
    """
    with ExitStack() as stack:
        try:
            progress = stack.enter_context(tempfile.NamedTemporaryFile(prefix="trial-")).name
        except OSError:  # there is no folder for it, or no room
            _log.info("model %s: not tried first: there is no temporary folder", file.name)
            return Tried()
        found = _try(file, progress, needs_verdict=needs_verdict)
        if found is None:  # the proof could not be ended: the rest by another child
            lacking = Verdict(f"{_PROOF} takes too much time or memory")
            rest = _try(file, progress, needs_verdict=False) or Tried()
            found = rest._replace(verdict=lacking)
    return found


def _try(file: File, progress: str, *, needs_verdict: bool) -> Tried | None:
    """Have one child do its steps; None if the proof takes too much time or memory.

    Raises:
        CorruptModel: see `try_file`.
    """
    from serving.processes.pool import JobLimits, ProcessPool  # late: the child has no use for it

    Path(progress).write_bytes(b"")
    job_s = _START_S + _CLOCK_FACTOR * 2 * (file.build_s + file.check_s)
    pool, limits = ProcessPool(1, (__name__,)), JobLimits(available_bytes(), job_s)
    try:
        future = pool.submit("", _steps, file, progress, needs_verdict, limits=limits)
        if not wait([future], SLOW_S).done:
            does = _DOES[_step_of(progress)]
            _log.info("model %s: a process that %s it first takes long", file.name, does)
        found: Tried = future.result()
    except (TooLarge, MemoryError):
        if _step_of(progress) is Step.PROVING:
            return None
        _log.info("model %s: not tried first: there is too little memory", file.name)
    except (Overloaded, OSError):
        _log.info("model %s: not tried first: no process can be started", file.name)
    except (DeadlineExceeded, TimeoutError) as err:
        if _step_of(progress) is Step.PROVING:
            return None
        raise CorruptModel(f"the process that {_DOES[_step_of(progress)]} it first: {err}") from err
    except InvalidRequest as err:  # the child has ended, twice
        raise CorruptModel(
            f"it ends the process that {_DOES[_step_of(progress)]} it ({err.__cause__}), "
            "and would end the server"
        ) from err
    except Exception:  # a bug, here or in the child
        _log.exception("model %s: not tried first", file.name)
    else:
        verdicts.keep(file.key, _PASSED)
        return found
    finally:
        pool.close()
    return Tried()


def _step_of(progress: str) -> Step:
    try:
        return Step(Path(progress).read_bytes()[0])
    except (OSError, IndexError, ValueError):
        return Step.PARSING


def _steps(file: File, progress: str, needs_verdict: bool) -> Tried:
    """Do all steps; in the child. A file that is no model passes: the server says why."""
    from serving.model import judging  # late: the proof, in the child alone

    def begin(step: Step) -> None:
        Path(progress).write_bytes(bytes([step]))

    begin(Step.PARSING)
    found = Tried()
    try:
        model = parse_model(file.onnx)
    except Exception:  # no protobuf
        return found
    onnx = file.onnx if cut_zip_maps(model) is None else model.SerializeToString()
    if needs_verdict:
        begin(Step.PROVING)
        samples = judging.samples_of(model, file.images)
        limits = file.build_s, file.check_s
        try:
            found = Tried(
                judging.within_limits(file.name, model, onnx, file.weights, samples, *limits),
                is_lasting=True,
            )
        except TimeoutError as err:
            found = Tried(Verdict(str(err)))
    is_proved = found.verdict is not None and found.verdict.obstacle is None
    onnx = judging.served(model, onnx, is_proved=is_proved)
    del model
    begin(Step.BUILDING)
    settings = replace(file.settings, device="cpu")
    build = partial(OnnxEngine.open, onnx, settings, None, None, file.weights)
    try:
        engine = within(file.build_s, build)
    except CorruptModel:
        return found
    begin(Step.RUNNING)
    with suppress(TimeoutError):  # an endless run: the server ends it, and goes on without
        within(file.check_s, partial(_run_once, engine))
    return found


def _run_once(engine: OnnxEngine) -> None:
    """Run drawn inputs until a run succeeds."""
    for feeds in draws(engine.tensors.inputs, 1):
        try:
            engine.run(feeds)
        except (InvalidRequest, ModelError):  # it does not take these values
            continue
        return

"""A verdict that is found: the proof that rows are independent, and its check by a run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from serving.model.fork import native_run
from serving.model.onnx_errors import reason_of
from serving.model.onnx_runtime import (
    NO_WEIGHTS,
    RunOptions,
    SessionSettings,
    bare_run,
    inputs_of,
    new_session,
    output_dtypes,
    release,
    runtime,
)
from serving.model.time_limit import note_slow, within
from serving.model.verdicts import Verdict
from serving.proof import Mixes, prove
from serving.proof.census import census
from serving.proof.check import Check, Graph, NotRun
from serving.proof.drawn_inputs import NUM_ROWS
from serving.proof.inline import inlined
from serving.proof.onnx_file import Message, parse_model
from serving.proof.values import Node
from serving.tensors import Array, Feeds

_log = logging.getLogger(__name__)
_PROOF, _BY_RUN = "the proof that rows are independent", "the check by a run"
_UNCHANGED = SessionSettings(
    device="cpu", optimization="none", config={"session.disable_prepacking": "1"}
)
"""Weights in the order of the processor pay after more runs than those of a check."""

_UNCHECKED: Mapping[str, tuple[tuple[int, int], Callable[[Node], bool]]] = {
    "Pad": ((1, 26), lambda node: node.text("mode") == "reflect"),
    "ReverseSequence": ((1, 28), lambda node: True),
    "ai.onnx.ml.SVMClassifier": ((1, 26), lambda node: True),
    "com.microsoft.Attention": ((1, 26), lambda node: node.has(3)),
}
"""Operators that older releases run on what callers choose without looking at it, so that they read
the row beside, or write there: a row shorter than the border that mirrors it, a length of 0, a
table of fewer columns than support vectors have, an end below 0. With each the first release that
refuses such a call or answers it right, and the nodes that it is about."""


class _KindsOfRelease:
    """What nodes may be like: as exports have them, and safe on this release of ONNX Runtime."""

    def require_known(self, node: Node) -> None:
        """Raise Mixes if a node is of another kind."""
        census().require_known(node)
        since, is_about = _UNCHECKED.get(node.op, ((0, 0), bool))
        if release() < since and is_about(node) and any(each.is_rows for each in node.given):
            wanted = ".".join(map(str, since))
            raise Mixes(f"ONNX Runtime before {wanted} may answer it by another row: no rule")


class UnchangedSession:
    """A graph as its file has it, for the check by a run; `terminate` of its options ends a run."""

    def __init__(self, weights: Mapping[str, bytes], options: RunOptions, model: bytes) -> None:
        """Build it; ONNX Runtime's own errors pass through."""
        session = new_session(model, _UNCHANGED, weights=weights)
        self.inputs = inputs_of(session)
        self.dtypes = output_dtypes(session)
        self._run, self._options = bare_run(session), options

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Run it.

        Raises:
            TimeoutError: it was ended.
        """
        try:
            with native_run():
                return self._run(list(names), feeds, self._options)
        except Exception:  # ONNX Runtime's own exceptions have no common base
            if self._options.terminate:
                raise TimeoutError("the check by a run was ended") from None
            raise


def prepare(
    model: Message,
    onnx: bytes,
    weights: Mapping[str, bytes],
    options: RunOptions,
    samples: Feeds | None = None,
) -> Check | Verdict:
    """Prove that rows are independent, and build the session of the check by a run.

    Args:
        model: the ModelProto.
        onnx: its bytes.
        weights: the content of files with weights, by their location in the model.
        options: `terminate` ends the runs of the check.
        samples: rows that the model takes, if there are some.

    Returns:
        The check to run; the verdict, if the proof fails.
    """
    try:
        proof = prove(model, _KindsOfRelease())
    except Mixes as err:
        return Verdict(str(err))
    try:
        return Check(
            Graph(model, onnx, samples), proof, partial(UnchangedSession, weights, options)
        )
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        return Verdict(f"the check by a run can't be built: {reason_of(err)}")


def run(check: Check) -> Verdict:
    """Run a check; return the verdict.

    Raises:
        TimeoutError: the runs were ended.
    """
    try:
        found = check.run()
    except Mixes as err:
        return Verdict(str(err))
    except NotRun:
        return Verdict("row independence is proved, but no drawn input can be run to check it")
    except TimeoutError:
        raise
    except Exception as err:  # a graph of others, and no reason to refuse the whole model
        _log.warning("the check by a run failed", exc_info=True)
        return Verdict(f"the check by a run failed: {type(err).__name__}")
    _log.debug("checked by %s runs: %s tensors", found.num_runs, found.num_tensors)
    if not found.num_omitted:
        return Verdict(None)
    total = found.num_tensors + found.num_omitted
    return Verdict(None, f"{found.num_omitted} of {total} tensors not checked by a run")


def within_limits(
    name: str,
    model: Message,
    onnx: bytes,
    weights: Mapping[str, bytes],
    samples: Feeds | None,
    build_s: float,
    check_s: float,
) -> Verdict:
    """Return the verdict on a model, within limits of time.

    Args:
        name: the model's and the version's, for the log.
        model: the ModelProto.
        onnx: its bytes.
        weights: the content of files with weights, by their location in the model.
        samples: rows that the model takes, if there are some.
        build_s: processor time for the proof and the session of its check, in seconds.
        check_s: processor time for the runs of the check, in seconds.

    Raises:
        TimeoutError: it takes longer.
    """
    options = runtime().RunOptions()
    work = partial(prepare, model, onnx, weights, options, samples)
    try:
        found = within(build_s, work, on_slow=partial(note_slow, name, _PROOF, build_s))
        if not isinstance(found, Verdict):
            slow = partial(note_slow, name, _BY_RUN, check_s)
            found = within(check_s, partial(run, found), on_slow=slow)
    except TimeoutError as err:
        _log.info("model %s: %s %s", name, _BY_RUN, err)
        raise TimeoutError(f"{_BY_RUN} {err}") from err
    finally:
        options.terminate = True  # ends a run in progress
    return found


def samples_of(model: Message, rows: Array | None) -> Feeds | None:
    """Return rows that a model takes as the inputs of a run, as many as a check needs.

    Args:
        model: the ModelProto.
        rows: of its only input; None if there are none.
    """
    if rows is None or len(model.graph.input) != 1:
        return None
    return {model.graph.input[0].name: rows[np.resize(np.arange(len(rows)), NUM_ROWS)]}


def served(model: Message, onnx: bytes, *, is_proved: bool) -> bytes:
    """Return the bytes of the model that is to be served: the graph that was proved, if one was.

    Args:
        model: the ModelProto.
        onnx: its bytes.
        is_proved: whether its rows were proved independent: of the graph without functions.
    """
    if not is_proved or not model.functions:
        return onnx

    new = inlined(model)
    return onnx if new is model else new.SerializeToString()


def judge(onnx: bytes) -> Verdict:
    """Return the verdict on a model in one file."""
    model = parse_model(onnx)
    found = prepare(model, onnx, NO_WEIGHTS, runtime().RunOptions())
    return found if isinstance(found, Verdict) else run(found)

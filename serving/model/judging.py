"""A verdict that is found: the proof that rows are independent, and its check by a run."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serving.model.onnx_errors import reason_of
from serving.model.onnx_file import Message, parse_model
from serving.model.onnx_runtime import NO_WEIGHTS, RunOptions, runtime
from serving.model.verdicts import Verdict
from serving.tensors import Feeds

if TYPE_CHECKING:
    from serving.model.proof.check import Check

_log = logging.getLogger(__name__)


def prepare(
    model: Message,
    onnx: bytes,
    weights: Mapping[str, bytes],
    options: RunOptions,
    samples: Feeds | None = None,
) -> "Check | Verdict":
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
    from serving.model.proof import Mixes, prove
    from serving.model.proof.check import Check, Graph

    try:
        proof = prove(model)
    except Mixes as err:
        return Verdict(str(err))
    try:
        return Check(Graph(model, onnx, weights, samples), proof, options)
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        return Verdict(f"the check by a run can't be built: {reason_of(err)}")


def run(check: "Check") -> Verdict:
    """Run a check; return the verdict.

    Raises:
        TimeoutError: the runs were ended.
    """
    from serving.model.proof import Mixes
    from serving.model.proof.check import NotRun

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


def judge(onnx: bytes) -> Verdict:
    """Return the verdict on a model in one file."""
    model = parse_model(onnx)
    found = prepare(model, onnx, NO_WEIGHTS, runtime().RunOptions())
    return found if isinstance(found, Verdict) else run(found)

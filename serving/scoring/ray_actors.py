"""Scores pieces on a Ray cluster: Ray Data hands each to an actor that has loaded the model."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt

from serving.config import Device
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    DigitsError,
    ModelError,
    Unavailable,
)
from serving.scoring.dataset import Piece
from serving.scoring.decoders import Decoders
from serving.scoring.output import Scored
from serving.scoring.scorer import RUN_IMAGES, Scorer, Task
from serving.scoring.shipped_model import ShippedModel

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it would call its vendor

import ray

_ERRORS: dict[str, type[DigitsError]] = {
    kind.__name__: kind for kind in (ConfigurationError, CorruptModel, DeviceError)
}
"""Errors that keep their type on the way from an actor; others are ModelError."""


class _Actor:
    """One process of the cluster: the model is loaded once, then pieces come.

    Errors are returned: Ray would start an actor again and again whose construction fails.
    """

    def __init__(self, task: Task, model: ShippedModel, device: Device) -> None:
        self._decoders = Decoders(num_processes=1)
        self._failure: DigitsError | None = None
        try:
            loaded = model.load(device, RUN_IMAGES[device])
            self._scorer = Scorer(task, loaded, self._decoders.decode, lambda num_rows: None)
        except DigitsError as err:
            self._failure = err

    def __call__(self, batch: "dict[str, npt.NDArray[Any]]") -> "dict[str, list[Any]]":
        (piece,) = batch["piece"]
        scored, failure = Scored(0, 0), self._failure
        if failure is None:
            try:
                scored = self._scorer.score(pickle.loads(piece))
            except DigitsError as err:
                failure = err
        return {
            "num_rows": [scored.num_rows],
            "num_errors": [scored.num_errors],
            "failure": [type(failure).__name__ if failure else ""],
            "reason": [str(failure or "")],
        }


def score(
    task: Task, pieces: Sequence[Piece], model: ShippedModel, device: Device,
    num_actors: int | None, address: str | None, advance: Callable[[int], None],
) -> Iterator[Scored]:  # fmt: skip
    """Score pieces on a cluster; yields each that is finished, in any order.

    A piece whose actor or machine dies is scored again elsewhere. Its file has one name and is
    renamed into place, so it is there once, whatever is repeated.

    Args:
        task: what is done with each piece; its paths must be those of every machine.
        pieces: the data set.
        model: the model, which is sent to the actors.
        device: "cuda" takes a GPU an actor; "cpu" and "auto" take a core.
        num_actors: the most actors; None for one on each core or GPU of the cluster.
        address: the cluster's; None for the one that RAY_ADDRESS names or that runs on this
            machine, else a new one on this machine.
        advance: called with the number of rows of each piece that is finished.

    Raises:
        ConfigurationError: there is no such cluster, or it has no such device.
        DigitsError: a piece failed.
    """
    device = "cuda" if device == "cuda" else "cpu"
    _connect(address)
    try:
        resource = "GPU" if device == "cuda" else "CPU"
        available = int(ray.cluster_resources().get(resource, 0))
        if not available:
            raise ConfigurationError(f"the cluster has no {resource}")
        most = min(num_actors or available, len(pieces))
        for row in _rows(task, pieces, model, device, most):
            if row["failure"]:
                raise _ERRORS.get(row["failure"], ModelError)(row["reason"])
            advance(row["num_rows"])
            yield Scored(row["num_rows"], row["num_errors"])
    except ray.exceptions.RayError as err:
        raise Unavailable(f"the cluster failed: {str(err).strip().partition(chr(10))[0]}") from err
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    try:
        ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as err:  # OSError has ConnectionError below it
        reason = str(err).strip().partition("\n")[0]
        raise ConfigurationError(f"can't reach the cluster {address or ''}: {reason}") from err


def _rows(
    task: Task, pieces: Sequence[Piece], model: ShippedModel, device: Device, num_actors: int
) -> Iterator[dict[str, Any]]:
    """Return what the actors return, in any order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # A piece a block: a block is what is handed out, and repeated.
    items = [{"piece": pickle.dumps(piece)} for piece in pieces]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    scored = dataset.map_batches(
        _Actor, fn_constructor_args=(task, model, device), batch_size=1,
        concurrency=(1, num_actors), num_cpus=1, num_gpus=1 if device == "cuda" else 0,
    )  # fmt: skip
    rows: Iterator[dict[str, Any]] = scored.iter_rows()
    return rows

"""Scores pieces on a Ray cluster: a task for each piece; each process loads the model once."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from serving.config import Device, ModelConfig, Precision
from serving.digits.pictures.files import processes
from serving.errors import ConfigurationError, DigitsError, ModelError, Unavailable
from serving.model.loaded_model import BATCH_LIMIT_FACTOR, LoadedModel, load_model
from serving.model.manifest import FILES, MANIFEST
from serving.scoring.dataset import Piece
from serving.scoring.location import reason
from serving.scoring.scorer import RUN_IMAGES, Task, score_piece
from serving.system.processes import Processes
from serving.telemetry import logs

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it would call its vendor

import ray

_CONNECT_S = 5.0
_Model = tuple[str, Device, Precision, tuple[bytes, ...]]
"""A model's name, how it runs, and its files, for machines that do not have them."""


def connect(address: str) -> None:
    """Connect to a cluster; without an address to the usual one, else to a new one.

    Raises:
        ConfigurationError: there is no such cluster.
    """
    place = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = place.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(
            address or None, include_dashboard=False, logging_level=logging.CRITICAL,
            log_to_driver=False,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as err:
        raise ConfigurationError(f"can't reach the cluster {place}: {reason(err)}") from err


def score(
    task: Task, pieces: Sequence[Piece], config: ModelConfig, version: str,
    num_workers: int | None, advance: Callable[[int], None],
) -> Iterator[int]:  # fmt: skip
    """Score all pieces on the cluster that is connected; yields each one's number of errors.

    Ray repeats a piece whose process or machine dies. Its file has one name and is renamed into
    place, so it is there once.

    Args:
        task: the work; its paths must be those of every machine.
        pieces: its input, likewise.
        config: the model; device "cuda" takes a GPU a process, others a core.
        version: the model's version.
        num_workers: the most pieces at once; None for one on each core or GPU.
        advance: called with the number of rows of each piece that is finished.

    Raises:
        ConfigurationError: the cluster has no such device.
        DigitsError: a piece failed.
    """
    try:
        yield from _run(task, pieces, _shipped(config, version), num_workers, advance)
    except ray.exceptions.RayTaskError as err:
        if isinstance(err.cause, DigitsError):
            raise err.cause from None
        raise ModelError(reason(err.cause)) from err
    except ray.exceptions.RayError as err:
        raise Unavailable(f"the cluster failed: {reason(err)}") from err
    finally:
        ray.shutdown()


def _run(
    task: Task, pieces: Sequence[Piece], model: _Model, num_workers: int | None,
    advance: Callable[[int], None],
) -> Iterator[int]:  # fmt: skip
    kind = "GPU" if model[1] == "cuda" else "CPU"
    free = int(ray.cluster_resources().get(kind, 0))
    if not free:
        raise ConfigurationError(f"the cluster has no {kind}")
    shared = ray.put((task, model))
    score_one = ray.remote(num_cpus=1, num_gpus=int(kind == "GPU"))(_score_one)
    waiting, running, num_alive = iter(pieces), dict[Any, Piece](), 0
    while True:
        for piece in islice(waiting, (num_workers or free) - len(running)):
            running[score_one.remote(shared, piece)] = piece
        if not running:
            return
        done, _ = ray.wait([*running], timeout=1)
        for each in done:
            advance(running.pop(each).num_rows)
            yield ray.get(each)
        before, num_alive = num_alive, sum(node["Alive"] for node in ray.nodes())
        if num_alive < before:
            line = f"{before - num_alive} of {before} machines died: their files are done again"
            logs.print_line(line, sys.stderr)


def _shipped(config: ModelConfig, version: str) -> _Model:
    folder = config.models / config.model / version
    files = tuple((folder / name).read_bytes() for name in (MANIFEST, FILES[config.precision]))
    device: Device = "cuda" if config.device == "cuda" else "cpu"
    return f"{config.model}/{version}", device, config.precision, files


def _score_one(shared: tuple[Task, _Model], piece: Piece) -> int:
    return score_piece(shared[0], *_loaded(shared[1]), lambda _: None, piece)


@cache
def _loaded(model: _Model) -> tuple[LoadedModel, Processes]:
    name, device, precision, contents = model
    with tempfile.TemporaryDirectory(prefix="digits-") as root:
        folder = Path(root) / name
        folder.mkdir(parents=True)
        for file, content in zip((MANIFEST, FILES[precision]), contents, strict=True):
            (folder / file).write_bytes(content)
        loaded = load_model(
            folder.parent, folder.name, device, precision, RUN_IMAGES[device], BATCH_LIMIT_FACTOR,
            is_described=True,
        )  # fmt: skip
    return loaded, processes(1)

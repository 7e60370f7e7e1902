"""The inference protocol's index of the repository, and its loading and unloading of models."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from serving.errors import InvalidRequest, Unavailable
from serving.protocols.messages import parse
from serving.protocols.oip import inference_pb


class ModelState(NamedTuple):
    """One version of a model in the repository."""

    name: str
    version: str
    reason: str = ""
    """Why it is not ready; empty if it is."""


def index(request: bytes, states: Iterable[ModelState]) -> Any:
    """Build the RepositoryIndexResponse: all versions, or those that are ready."""
    only_ready = parse(inference_pb.RepositoryIndexRequest, request).ready
    response = inference_pb.RepositoryIndexResponse()
    for name, version, reason in states:
        if not (only_ready and reason):
            state = "UNAVAILABLE" if reason else "READY"
            response.models.add(name=name, version=version, state=state, reason=reason)
    return response


def load(request: bytes, load_model: Callable[[str], None] | None) -> Any:
    """Load a model by its name, or load it again.

    Args:
        request: a RepositoryModelLoadRequest.
        load_model: returns when the model is ready, or raises DigitsError; None if the operator
            does not allow it.

    Raises:
        Unavailable: it is not allowed, the status that Triton answers with.
        InvalidRequest: the request has files or a configuration of its own.
    """
    message = parse(inference_pb.RepositoryModelLoadRequest, request)
    change = _allowed(load_model)
    if message.parameters:
        raise InvalidRequest("expected no parameters: models are loaded as the repository has them")
    change(message.model_name)
    return inference_pb.RepositoryModelLoadResponse()


def unload(request: bytes, unload_model: Callable[[str], None] | None) -> Any:
    """Unload a model by its name; see `load`."""
    message = parse(inference_pb.RepositoryModelUnloadRequest, request)
    _allowed(unload_model)(message.model_name)
    return inference_pb.RepositoryModelUnloadResponse()


def _allowed(change: Callable[[str], None] | None) -> Callable[[str], None]:
    if change is None:
        raise Unavailable(
            "models are not loaded or unloaded on request: the server was started without "
            "--allow-repository-control"
        )
    return change

"""Serve any ONNX or Keras model over gRPC and HTTP, in batches that provably change no answer.

    import serving
    with serving.Model.load("model.onnx") as model:  # or serving.Client("127.0.0.1:50051")
        outputs = model.infer({"x": array})

Each name is imported when it is first used, so that `import serving.client` loads no ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # "as": for type checkers, which don't read `__all__` below
    from serving.client import AsyncClient as AsyncClient
    from serving.client import Client as Client
    from serving.config import BatchingConfig as BatchingConfig
    from serving.embedded import AsyncModel as AsyncModel
    from serving.embedded import Model as Model
    from serving.errors import ConfigurationError as ConfigurationError
    from serving.errors import CorruptModel as CorruptModel
    from serving.errors import DeadlineExceeded as DeadlineExceeded
    from serving.errors import DeviceError as DeviceError
    from serving.errors import InvalidRequest as InvalidRequest
    from serving.errors import ModelError as ModelError
    from serving.errors import ModelNotFound as ModelNotFound
    from serving.errors import NotAllowed as NotAllowed
    from serving.errors import Overloaded as Overloaded
    from serving.errors import RequestError as RequestError
    from serving.errors import ServerError as ServerError
    from serving.errors import ServingError as ServingError
    from serving.errors import TooLarge as TooLarge
    from serving.errors import Unauthenticated as Unauthenticated
    from serving.errors import Unavailable as Unavailable
    from serving.errors import Unsupported as Unsupported
    from serving.handlers.handler import Handler as Handler
    from serving.handlers.kinds import Array as Array
    from serving.handlers.kinds import Bytes as Bytes
    from serving.handlers.kinds import Json as Json
    from serving.handlers.kinds import Picture as Picture
    from serving.handlers.kinds import Text as Text
    from serving.launch import Server as Server
    from serving.launch import serve as serve
    from serving.optimising.optimize import optimize as optimize
    from serving.optimising.result import Optimization as Optimization
    from serving.publishing.models import publish as publish
    from serving.tensors import ModelInfo as ModelInfo
    from serving.tensors import Outputs as Outputs
    from serving.tensors import Tensor as Tensor

    __version__: str

_NAMES = {
    "client": "AsyncClient Client",
    "config": "BatchingConfig",
    "embedded": "AsyncModel Model",
    "errors": """
        ConfigurationError CorruptModel DeadlineExceeded DeviceError InvalidRequest ModelError
        ModelNotFound NotAllowed Overloaded RequestError ServerError ServingError TooLarge
        Unauthenticated Unavailable Unsupported
    """,
    "handlers.handler": "Handler",
    "handlers.kinds": "Array Bytes Json Picture Text",
    "launch": "Server serve",
    "optimising.optimize": "optimize",
    "optimising.result": "Optimization",
    "publishing.models": "publish",
    "tensors": "ModelInfo Outputs Tensor",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from serving.commandline.installation import version  # late: as all names here

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

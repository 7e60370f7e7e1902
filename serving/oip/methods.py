"""The methods of inference.GRPCInferenceService (Open Inference Protocol v2)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from serving.errors import Unsupported
from serving.oip import inference_pb
from serving.oip.infer import Infer
from serving.oip.queries import Fields, Queries
from serving.protocols import parse
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Unary
from serving.router import Router

SERVICE = inference_pb.SERVICE
UNSUPPORTED = {
    "shared memory is not supported: tensors travel in the messages": [
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ],
    "trace settings can't be changed by callers: the server's --otlp-endpoint sends traces": [
        "TraceSetting"
    ],
    "log settings can't be changed by callers: the server has --log-level and --log-format": [
        "LogSettings"
    ],
}
"""Methods of other servers for the protocol's extensions, by why they are refused."""
_CONTROL = ("RepositoryModelLoad", "RepositoryModelUnload")


def inference_methods(router: Router, queries: Queries, pool: Any = None) -> list[Method]:
    """Return the service's methods, and those that are refused by name; see `Infer`."""
    infer, stream = Infer(router, pool), Infer(router, pool, is_stream=True)
    return [
        BatchedUnary(
            path=f"/{SERVICE}/ModelInfer",
            name="ModelInfer",
            read=infer.read,
            known=infer.known,
            elsewhere=infer.elsewhere,
        ),
        BatchedStream(
            path=f"/{SERVICE}/ModelStreamInfer",
            name="ModelStreamInfer",
            read=stream.read,
            known=stream.known,
            elsewhere=stream.elsewhere,
            error_message=stream.error_message,
        ),
        *(
            Unary(
                path=f"/{SERVICE}/{name}",
                name=name,
                answer=partial(_answer, name, query),
                is_slow=name in _CONTROL and queries.is_control_slow,
            )
            for name, query in _asked(queries).items()
        ),
        *(
            Unary(path=f"/{SERVICE}/{name}", name="other", answer=partial(_refuse, text))
            for text, names in UNSUPPORTED.items()
            for name in names
        ),
    ]


def _asked(queries: Queries) -> dict[str, Callable[[Any], Fields]]:
    """Return how the message of each query is asked, by the method's name."""
    return {
        "ServerLive": lambda _: {"live": True},
        "ServerReady": lambda _: {"ready": queries.is_ready()},
        "ServerMetadata": lambda _: queries.server_metadata(),
        "ModelReady": lambda each: {"ready": queries.is_model_ready(each.name, each.version)},
        "ModelMetadata": lambda each: queries.model_metadata(each.name, each.version),
        "ModelConfig": lambda each: {"config": queries.model_config(each.name, each.version)},
        "ModelStatistics": lambda each: {
            "model_stats": queries.model_statistics(each.name, each.version)
        },
        "RepositoryIndex": lambda each: {"models": queries.index(only_ready=each.ready)},
        "RepositoryModelLoad": lambda each: queries.load_model(each.model_name, each.parameters),
        "RepositoryModelUnload": lambda each: queries.unload_model(
            each.model_name, each.parameters
        ),
    }


def _answer(name: str, query: Callable[[Any], Fields], request: bytes) -> bytes:
    """Answer one query by a message that is made of its fields."""
    message = parse(getattr(inference_pb, f"{name}Request"), request)
    found: bytes = getattr(inference_pb, f"{name}Response")(**query(message)).SerializeToString()
    return found


def _refuse(text: str, request: bytes) -> bytes:
    raise Unsupported(text)

"""A server without a model: one fixed answer, so that its rate is the price of the transport.

python -m benchmarks.targets.echo_server native|grpcio
"""

import asyncio
import sys

from serving.predictions import NUM_CLASSES
from serving.rpc import wire

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_ANSWER = wire.encode_response(b"\7", bytes(4 * NUM_CLASSES), "1")
_MAX_EVENTS = 4096


def main() -> None:
    """Serve until killed."""
    if sys.argv[1] == "native":
        _serve_native()
    else:
        import uvloop

        uvloop.run(_serve_grpcio())


def _serve_native() -> None:
    from pygrpc_native import EVENT_CALL, NativeGrpcFront

    # As in serving/rpc/native.py.
    front = NativeGrpcFront("127.0.0.1:0", [(_CLASSIFY, False)], io_threads=1, call_details=True)
    front.start()
    print(f"serving address=127.0.0.1:{front.bound_port}", flush=True)
    while (events := front.recv_batch(_MAX_EVENTS)) is not None:
        for kind, call_id, _, _, _ in events:
            if kind == EVENT_CALL:
                front.respond(call_id, _ANSWER)


async def _serve_grpcio() -> None:
    import grpc

    async def classify(request: bytes, context: object) -> bytes:
        return _ANSWER

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(classify)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("digits.v1.DigitClassifier", {"Classify": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving address=127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()

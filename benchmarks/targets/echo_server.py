"""grpc.aio without a model: fixed answers, so that its rate is the price of the transport.

python -m benchmarks.targets.echo_server
"""

import asyncio
from functools import cache

from serving.protocols.digits_v1 import wire
from serving.signature import DIGITS


@cache
def answer_of(message_bytes: int) -> bytes:
    """Return an answer as large as a classification's to a request of this length."""
    num_images = message_bytes // DIGITS.image_bytes
    return wire.encode_response(bytes(num_images), bytes(num_images * DIGITS.row_bytes), "1")


async def _serve() -> None:
    import grpc

    async def classify(request: bytes, context: object) -> bytes:
        return answer_of(len(request))

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(classify)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("digits.v1.DigitClassifier", {"Classify": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving address=127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())

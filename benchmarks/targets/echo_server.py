"""A server without a model: fixed answers, so that its rate is the price of the transport.

python -m benchmarks.targets.echo_server h2|grpcio
"""

import asyncio
import sys

from benchmarks.targets.small_loop import serve
from serving.images import IMAGE_BYTES
from serving.predictions import ROW_BYTES
from serving.protocols.digits_v1 import wire


class _Answers(dict[int, bytes]):
    """Answers as large as a classification's, by the length of the question."""

    def __missing__(self, num_bytes: int) -> bytes:
        num_images = num_bytes // IMAGE_BYTES
        self[num_bytes] = wire.encode_response(
            bytes(num_images), bytes(num_images * ROW_BYTES), "1"
        )
        return self[num_bytes]


_answers = _Answers()


def main() -> None:
    """Serve until killed."""
    if sys.argv[1] == "h2":
        serve(lambda messages: [_answers[len(message)] for message in messages])
    else:
        import uvloop

        uvloop.run(_serve_grpcio())


async def _serve_grpcio() -> None:
    import grpc

    async def classify(request: bytes, context: object) -> bytes:
        return _answers[len(request)]

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
    main()

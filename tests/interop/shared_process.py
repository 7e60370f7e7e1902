"""Our server and tritonclient in one process: run by test_tritonclient in a venv that has both.

    python shared_process.py MODELS SAMPLES ours|theirs

The last word says who is imported first. Both would register the same protobuf names, if ours were
not in a pool of their own.
"""

import asyncio
import importlib
import sys
from pathlib import Path

import numpy as np

from tests.support.fakes import router_of

OURS, THEIRS = "serving.server.server", "tritonclient.grpc.aio"


async def main(models, samples):
    from serving import Model
    from serving.config import ServerConfig
    from serving.server.server import Server
    from tests.interop.triton_calls import check, compare_descriptors, question

    triton = importlib.import_module(THEIRS)
    compare_descriptors()
    with np.load(samples) as arrays, Model.load(models / "digits") as model:
        router = router_of(model.served)
        server = Server(router, ServerConfig(port=0, metrics_port=None, transport="grpcio"))
        await server.start()
        async with triton.InferenceServerClient(server.address) as client:
            result = await client.infer("digits", question(arrays["images"]))
        check(result, arrays["probabilities"])
        await server.stop(grace_s=0)


if __name__ == "__main__":
    for module in (OURS, THEIRS) if sys.argv[3] == "ours" else (THEIRS, OURS):
        importlib.import_module(module)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

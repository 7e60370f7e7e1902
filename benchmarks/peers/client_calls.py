"""Calls by one client for some seconds; run in the environment that has the client.

    python client_calls.py TASK    (JSON; see benchmarks/clients.py)

Prints duration, processor time and errors as JSON, and writes the latencies.
"""

import asyncio
import json
import sys
import threading
from itertools import chain
from time import perf_counter, process_time

import numpy as np


def sync_call(client, address, model, feeds):
    """Return a function that has one call answered, for threads to share."""
    if client == "Client":
        # Late, here and below: each client is measured in an environment that may have it alone.
        from serving import Client

        ours = Client(address)
        return lambda: ours.infer(model, feeds)
    if client == "grpcio stub":
        import grpc

        from serving.oip import inference_pb as pb
        from serving.tensors import DTYPES

        names = {dtype: name for name, dtype in DTYPES.items()}
        infer = grpc.insecure_channel(address).unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        def call():
            request = pb.ModelInferRequest(model_name=model)
            for name, array in feeds.items():
                request.inputs.add(name=name, datatype=names[array.dtype], shape=array.shape)
                request.raw_input_contents.append(array.tobytes())
            answer = infer(request)
            return [np.frombuffer(raw, np.float32) for raw in answer.raw_output_contents]

        return call
    if client == "tritonclient":
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    from tritonclient.utils import np_to_triton_dtype

    shared = triton.InferenceServerClient(address) if client == "tritonclient" else None
    mine = threading.local()  # its HTTP client is for one thread

    def call_triton():
        theirs = getattr(mine, "client", None)
        if theirs is None:
            theirs = mine.client = shared or triton.InferenceServerClient(address)
        inputs = []
        for name, array in feeds.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return theirs.infer(model, inputs)

    return call_triton


def by_threads(call, callers, seconds):
    """Have calls answered on threads; return latencies, errors, duration and processor time."""
    ended, failed = [[] for _ in range(callers)], [0] * callers
    start = threading.Barrier(callers + 1)

    def loop(number):
        start.wait()
        begin_s = now_s = perf_counter()
        while now_s - begin_s < seconds:
            before_s = now_s
            try:
                call()
            except Exception:
                failed[number] += 1
            now_s = perf_counter()
            ended[number].append(now_s - before_s)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    begin_s, cpu_s = perf_counter(), process_time()
    start.wait()
    for thread in threads:
        thread.join()
    return (
        list(chain.from_iterable(ended)),
        sum(failed),
        perf_counter() - begin_s,
        process_time() - cpu_s,
    )


async def by_tasks(task, feeds):
    """Have calls answered by AsyncClient, a task for each caller."""
    from serving import AsyncClient

    ended, failed, seconds = [], [0], task["seconds"]
    async with AsyncClient(task["address"]) as client:
        await client.infer(task["model"], feeds)
        begin_s, cpu_s = perf_counter(), process_time()

        async def loop():
            now_s = perf_counter()
            while now_s - begin_s < seconds:
                before_s = now_s
                try:
                    await client.infer(task["model"], feeds)
                except Exception:
                    failed[0] += 1
                now_s = perf_counter()
                ended.append(now_s - before_s)

        await asyncio.gather(*(loop() for _ in range(task["callers"])))
        return ended, failed[0], perf_counter() - begin_s, process_time() - cpu_s


def main():
    """Run one task."""
    task = json.loads(sys.argv[1])
    with np.load(task["feeds"]) as archive:
        feeds = dict(archive)
    if task["client"] == "AsyncClient":
        measured = asyncio.run(by_tasks(task, feeds))
    else:
        call = sync_call(task["client"], task["address"], task["model"], feeds)
        call()  # connects
        measured = by_threads(call, task["callers"], task["seconds"])
    latencies_s, num_errors, duration_s, cpu_s = measured
    np.save(task["ended"], np.array(latencies_s))
    print(json.dumps({"num_errors": num_errors, "duration_s": duration_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()

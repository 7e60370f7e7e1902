"""Every call of KServe's REST client that we answer: run by test_kserve in a venv that has it.

    python -m tests.interop.kserve_calls URL SAMPLES

SAMPLES is as in triton_calls.
"""

import asyncio
import sys
from itertools import product

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TOLERANCE = 1e-5


async def main():
    url, samples = sys.argv[1:]
    with np.load(samples) as arrays:
        images, expected = arrays["images"][:9], arrays["probabilities"][:9]
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "digits")
        assert not await client.is_model_ready(url, "letters")
        await infers(client, url, images, expected)
        await refuses(client, url, images)


async def infers(client, url, images, expected):
    for is_binary, wants_binary in product((True, False), repeat=2):
        for outputs in ([RequestedOutput("probabilities", {"binary_data": wants_binary})], None):
            request = request_of(images, outputs, is_binary=is_binary)
            answer = await client.infer(url, request, model_name="digits")
            assert (answer.id, answer.model_name) == ("7", "digits")
            found = answer.outputs[0].as_numpy()
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


async def refuses(client, url, images):
    for model, status in (("letters", 404), ("digits", 400)):
        try:
            await client.infer(url, request_of(images[:, 1:]), model_name=model)
            said = 200
        except httpx.HTTPStatusError as err:
            said = err.response.status_code
        assert said == status, (model, said)


def request_of(images, outputs=None, *, is_binary=True):
    tensor = InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=is_binary)
    return InferRequest("digits", [tensor], request_id="7", request_outputs=outputs)


if __name__ == "__main__":
    asyncio.run(main())

"""Requests to paste, whole: for each client, with all that a server may ask for."""

import pytest

from serving.oip.examples import Access, Example, request_body, sample_of, shape_of, word_of
from serving.tensors import Tensor, TensorSignature

OPEN = Access("host:1", "http://host:2")
GUARDED = Access(
    "host:1", "https://host:2", "ca.pem", needs_certificate=True, has_tokens=True
)  # fmt: skip
Y = (Tensor("y", "FP32", (-1,)),)
NUMBERS = TensorSignature((Tensor("x", "FP32", (-1, 2)),), Y, True)
PARTS = TensorSignature((Tensor("prompt", "BYTES", (-1,), content="text"),), Y, True, in_parts=True)
PICTURE = TensorSignature((Tensor("photo", "BYTES", (-1,), content="picture"),), Y, True)
JSON = TensorSignature((Tensor("facts", "BYTES", (-1,), content="json"),), Y, True)
LARGE = TensorSignature(
    (Tensor("x", "UINT8", (-1, 600, 600)),), (Tensor("y", "FP32", (-1, 600, 600)),), True
)
BODY = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}]}'
VAST = ('{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 600, 600], "parameters": '
        '{"binary_data_size": 360000}}], "parameters": {"binary_data_output": true}}')  # fmt: skip
CERT, KEY = "<your certificate>.pem", "<its key>.pem"
TOKEN = 'os.environ["TOKEN"]'
LINES = {
    "plain": (NUMBERS, "", OPEN, {
        "curl": f"curl http://host:2/v2/models/m/infer \\\n  -d '{BODY}'",
        "digit-serving": "digit-serving infer m --target host:1 'x=[[0.5, 0.5]]'",
        "Python": """\
from serving import Client

with Client('host:1') as client:
    print(client.infer('m', {'x': [[0.5, 0.5]]}))""",
        "tritonclient": """\
import numpy as np
from tritonclient import grpc

client = grpc.InferenceServerClient('host:1')
inputs = []
for name, datatype, array in [
    ('x', 'FP32', np.array([[0.5, 0.5]], 'float32')),
]:
    inputs.append(grpc.InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
answer = client.infer('m', inputs)
print([answer.as_numpy(name) for name in ['y']])""",
    }),
    "all that is asked for": (NUMBERS, "3", GUARDED, {
        "curl": f"curl --cacert ca.pem --cert '{CERT}' --key '{KEY}' -H \"Authorization: Bearer "
        f"$TOKEN\" https://host:2/v2/models/m/versions/3/infer \\\n  -d '{BODY}'",
        "digit-serving": "SERVING_TOKEN=$TOKEN digit-serving infer m --target host:1 --version 3 "
        f"--tls-ca ca.pem --tls-cert '{CERT}' --tls-key '{KEY}' 'x=[[0.5, 0.5]]'",
        "Python": f"""\
import os
from serving import Client

with Client('host:1', token={TOKEN}, tls_ca='ca.pem', tls_cert='{CERT}', tls_key='{KEY}') \
as client:
    print(client.infer('m', {{'x': [[0.5, 0.5]]}}, version='3'))""",
        "tritonclient": f"""\
import os
import numpy as np
from tritonclient import grpc

client = grpc.InferenceServerClient('host:1', ssl=True, root_certificates='ca.pem', \
certificate_chain='{CERT}', private_key='{KEY}')
inputs = []
for name, datatype, array in [
    ('x', 'FP32', np.array([[0.5, 0.5]], 'float32')),
]:
    inputs.append(grpc.InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
answer = client.infer('m', inputs, model_version='3', \
headers={{"authorization": "Bearer " + {TOKEN}}})
print([answer.as_numpy(name) for name in ['y']])""",
    }),
    "in parts": (PARTS, "", GUARDED._replace(tls_ca="", needs_certificate=False), {
        "curl": "curl -N -H \"Authorization: Bearer $TOKEN\" "
        "https://host:2/v2/models/m/generate_stream \\\n  -d '{\"prompt\": [\"text\"]}'",
        "digit-serving": "SERVING_TOKEN=$TOKEN digit-serving infer m --target host:1 "
        "'prompt=[\"text\"]'",
        "Python": f"""\
import os
from serving import Client

with Client('host:1', token={TOKEN}) as client:
    for part in client.stream('m', {{'prompt': ['text']}}):
        print(part)""",
        "tritonclient": f"""\
import os
import queue

import numpy as np
from tritonclient import grpc

client = grpc.InferenceServerClient('host:1')
inputs = []
for name, datatype, array in [
    ('prompt', 'BYTES', np.full((1,), 'text', object)),
]:
    inputs.append(grpc.InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
parts = queue.Queue()
client.start_stream(lambda *part: parts.put(part), headers={{"authorization": "Bearer " + {TOKEN}}})
client.async_stream_infer('m', inputs, enable_empty_final_response=True)
answer, error = parts.get()
while not (error or answer.get_response().parameters["triton_final_response"].bool_param):
    print([answer.as_numpy(name) for name in ['y']])
    answer, error = parts.get()
client.stop_stream()""",
    }),
    "picture": (PICTURE, "", OPEN, {
        "curl": "curl -T picture.jpg http://host:2/v2/models/m/infer",
        "digit-serving": "digit-serving infer m --target host:1 photo=@picture.jpg",
        "Python": """\
from serving import Client

with Client('host:1') as client:
    print(client.infer('m', {'photo': [open('picture.jpg', 'rb').read()]}))""",
        "tritonclient": """\
import numpy as np
from tritonclient import grpc

client = grpc.InferenceServerClient('host:1')
inputs = []
for name, datatype, array in [
    ('photo', 'BYTES', np.array([open('picture.jpg', 'rb').read()], object)),
]:
    inputs.append(grpc.InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
answer = client.infer('m', inputs)
print([answer.as_numpy(name) for name in ['y']])""",
    }),
    "large": (LARGE, "", OPEN, {
        "curl": f"{{ printf %s '{VAST}'; head -c 360000 /dev/zero; }} |\n  curl --output "
        f"answer.bin -H 'Inference-Header-Content-Length: {len(VAST)}' --data-binary @- "
        "http://host:2/v2/models/m/infer",
        "digit-serving": "digit-serving infer m --target host:1 'x=zeros[1,600,600]'",
        "Python": """\
import numpy as np
from serving import Client

with Client('host:1') as client:
    print(client.infer('m', {'x': np.zeros((1, 600, 600), 'uint8')}))""",
        "tritonclient": """\
import numpy as np
from tritonclient import grpc

client = grpc.InferenceServerClient('host:1')
inputs = []
for name, datatype, array in [
    ('x', 'UINT8', np.zeros((1, 600, 600), 'uint8')),
]:
    inputs.append(grpc.InferInput(name, array.shape, datatype))
    inputs[-1].set_data_from_numpy(array)
answer = client.infer('m', inputs)
print([answer.as_numpy(name) for name in ['y']])""",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lines_of_each_client_are_whole(name):
    tensors, version, access, lines = LINES[name]
    example = Example("m", version, tensors, {}, access)
    assert example.lines() == lines
    without = Example("m", version, tensors, {}, access._replace(http=""))
    assert without.lines().keys() == lines.keys() - {"curl"}


def test_command_has_the_file_of_a_token_on_the_servers_machine():
    access = Access("host:1", "", has_tokens=True, token_file="tokens")
    words = Example("m", "", NUMBERS, {}, access).shell()
    assert words == ("digit-serving infer m --target host:1 --token-file tokens 'x=[[0.5, 0.5]]'")
    without = Example("m", "", NUMBERS, {}, access._replace(token_file="")).shell()
    assert without == (
        "SERVING_TOKEN='<token>' digit-serving infer m --target host:1 'x=[[0.5, 0.5]]'"
    )


def test_json_of_a_handler_is_the_body():
    curl = Example("m m", "", JSON, {}, OPEN).lines()["curl"]
    assert curl == (
        "curl http://host:2/v2/models/m%20m/infer -H 'content-type: text/plain' -d '{\"key\": 1}'"
    )


def tensor(datatype, shape=(-1,), **more):
    return Tensor("x", datatype, shape, **more)


@pytest.mark.parametrize(
    ("one", "shapes", "shape", "sample", "word"),
    [
        (tensor("FP32"), {}, (1,), [0.5], "x=[0.5]"),
        (tensor("BOOL"), {}, (1,), [True], "x=[true]"),
        (tensor("INT8"), {}, (1,), [1], "x=[1]"), (tensor("UINT64"), {}, (1,), [1], "x=[1]"),
        (tensor("FP16", ()), {}, (), 0.5, "x=0.5"), (tensor("BYTES"), {}, (1,), ["text"],
                                                     'x=["text"]'),
        (tensor("FP32", (-1, 2)), {"x": (2, 2)}, (2, 2), [[0.5] * 2] * 2, "x=[[0.5, 0.5], [0.5, "
         "0.5]]"),
        (tensor("INT8", (64,)), {}, (64,), [1] * 64, f"x={[1] * 64}"),
        (tensor("INT8", (65,)), {}, (65,), None, "x=zeros[65]"),
        (tensor("BYTES", content="bytes"), {}, (1,), ["AAE="], "x=@file.bin"),
        (tensor("BYTES", content="json"), {}, (1,), ['{"key": 1}'], 'x=["{\\"key\\": 1}"]'),
    ],
    ids=str,
)  # fmt: skip
def test_input_has_a_sample(one, shapes, shape, sample, word):
    assert (shape_of(one, shapes), sample_of(one, shapes)) == (shape, sample)
    assert word_of(one, shapes) == word


def test_body_has_zeros_behind_it_where_values_are_many():
    tensors = TensorSignature(
        (Tensor("a", "FP64", (-1, 65)), Tensor("t", "BYTES", (100,)), Tensor("b", "INT8", (-1,))),
        (), False,
    )  # fmt: skip
    assert request_body(tensors, {}) == (
        {"inputs": [
            {"name": "a", "datatype": "FP64", "shape": [1, 65],
             "parameters": {"binary_data_size": 520}},
            {"name": "t", "datatype": "BYTES", "shape": [100],
             "parameters": {"binary_data_size": 400}},
            {"name": "b", "datatype": "INT8", "shape": [1], "data": [1]},
        ]},
        920,
    )  # fmt: skip


def test_name_of_a_model_is_one_part_of_the_path():
    lines = Example("a/b c", "", NUMBERS, {}, OPEN).lines()
    assert "http://host:2/v2/models/a%2Fb%20c/infer" in lines["curl"]

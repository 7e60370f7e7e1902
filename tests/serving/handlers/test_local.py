"""A handler in the process of its caller: the same rows in and out as in a server."""

import asyncio
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest

import serving
from serving.__main__ import main
from serving.config import BatchingConfig
from serving.oip import queries
from tests.serving.handlers import behaviours
from tests.serving.handlers.conftest import FILE, named
from tests.serving.handlers.test_served import picture_of
from tests.support.servers import ended

pytestmark = pytest.mark.process

BIAS = np.array([[1, 2], [3, 4]], np.float32)


def test_model_with_a_handler_answers_as_in_a_server(network):
    with serving.Model.load(network, handler=behaviours.Around) as model:
        found = model.infer({"text": ["a", "bab"], "bias": BIAS})
        assert model.describe().inputs[0].name == "text"
    handlers = {"model": f"{FILE}:Around"}
    with (
        serving.Server(network, handler=handlers) as server,
        serving.Client(server.address) as client,
    ):
        served = client.infer("model", {"text": ["a", "bab"], "bias": BIAS})
    assert found["text"].tolist() == served["text"].tolist() == ["a!", "bab!"]
    np.testing.assert_array_equal(found["y"], served["y"])


def test_async_model_takes_a_handler_too(network):
    async def ask():
        async with serving.AsyncModel.load(network, handler=behaviours.Crops) as model:
            return await asyncio.gather(*(model.infer({"text": [each]}) for each in ("ab", "")))

    full, empty = asyncio.run(ask())
    assert full["sum"].shape == (1, 2)
    assert empty["sum"].shape == (1, 0)


def test_handler_alone_needs_no_model(tmp_path):
    with serving.Model.load(handler=f"{FILE}:Facts") as model:
        found = model.infer({"data": [b"ab"]}, parameters={"top": 1})
        assert found["data"].tolist() == [b"ba"]
        assert found["parameters"].tolist() == ["top=1"]
    with serving.Model.load(handler=behaviours.Sizes) as model:
        assert model.infer([picture_of((1, 2, 3))])["size"].tolist() == [[3, 5]]
        with pytest.raises(serving.InvalidRequest, match="expected a picture"):
            model.infer([b"nothing"])


def test_metadata_names_what_answers(network):
    with serving.Model.load(handler=behaviours.Facts) as alone:
        served = alone.served
    with serving.Model.load(network, handler=behaviours.Around) as around:
        assert (served.backend, around.served.backend) == ("python", "onnxruntime")
    described = queries.model_metadata("facts", ("1",), served.tensors, served.backend)
    config = queries.model_config("facts", served.tensors, BatchingConfig(), {}, served.backend)
    assert (described["platform"], config["platform"], config["backend"]) == ("python",) * 3


def test_other_models_are_handed_in():
    with (
        serving.Model.load(handler=behaviours.Behaviours) as other,
        serving.Model.load(handler=behaviours.Cascade, models={"behaviours": other}) as model,
    ):
        assert model.infer(["say it"])["answer"].tolist() == ["SAY IT"]
    with (
        serving.Model.load(handler=behaviours.Cascade) as model,
        pytest.raises(serving.ModelNotFound, match="argument models"),
    ):
        model.infer(["say it"])


def test_errors_of_a_handler_are_raised():
    with serving.Model.load(handler=behaviours.Behaviours) as model:
        with pytest.raises(serving.InvalidRequest, match="why"):
            model.infer(["refuse why"])
        with pytest.raises(ValueError, match="own"):
            model.infer(["raise own"])
        with pytest.raises(serving.ModelError, match=r"Behaviours.predict: answer: expected 1"):
            model.infer(["less"])


def test_handler_and_model_have_to_fit(network):
    with pytest.raises(serving.ConfigurationError, match="it is a model without an ONNX file"):
        serving.Model.load(network, handler=behaviours.Facts)
    with pytest.raises(serving.ConfigurationError, match="it needs a model"):
        serving.Model.load(handler=behaviours.Around)
    with pytest.raises(serving.ConfigurationError, match="expected an ONNX file"):
        serving.Model.load()


def test_commands_run_a_handler_here(network, tmp_path):
    command = [sys.executable, "-m", "serving"]
    around = ["--handler", f"{FILE}:Around"]
    values = ["text=ab", "bias=[1, 2]", "--json"]
    answer = ended([*command, "infer", str(network), *around, *values], cwd=tmp_path)
    assert json.loads(answer.stdout)["text"] == ["ab!"], answer.stderr
    answer = ended([*command, "info", str(network), *around, "--json"], cwd=tmp_path)
    assert json.loads(answer.stdout)["inputs"] == ["text BYTES [N]", "bias FP32 [N, 2]"]
    (tmp_path / "upper.py").write_text(
        "import serving\n\nclass Upper(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        "    def predict(self, x):\n        return [each.upper() for each in x]\n"
    )
    answer = ended([*command, "infer", "upper.py", "a b", "--json"], cwd=tmp_path)
    assert json.loads(answer.stdout) == {"x": ["A B"]}, answer.stderr
    answer = ended([*command, "info", "upper.py", "--json"], cwd=tmp_path)
    assert json.loads(answer.stdout)["name"] == "upper"


def test_methods_can_be_called_without_anything():
    handler = behaviours.Around()
    inputs, state = handler.preprocess(["ab"], BIAS[:1])
    assert inputs["x"].tolist() == [[2, 1, 1, 2]]
    assert handler.postprocess(BIAS, state)["text"] == ["ab!"]


def test_values_of_json_are_values_in_process(capsys, tmp_path):
    with serving.Model.load(handler=behaviours.Documents) as model:
        found = model.infer([{"a": 1}, [None]])
        assert found["document"].tolist() == [{"got": {"a": 1}}, {"got": [None]}]
        with pytest.raises(serving.InvalidRequest, match="row 0 can't be JSON"):
            model.infer([{1, 2}])
    file = tmp_path / "echo.py"
    file.write_text(
        "import serving\n\nclass Echo(serving.Handler):\n"
        "    inputs = outputs = {'document': serving.Json()}\n\n"
        "    def predict(self, document):\n        return [{'got': each} for each in document]\n"
    )
    assert main(["infer", str(file), 'document={"a": 1}', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["document"] == [{"got": {"a": 1}}]


class Asks(serving.Handler):
    """Asks a model of JSON, by its texts, as in a server."""

    inputs: ClassVar = {"text": serving.Text()}
    outputs: ClassVar = {"text": serving.Text()}
    uses = ("documents",)

    def predict(self, text):
        return self.models.infer("documents", {"document": text})["document"].tolist()


def test_handler_sends_and_gets_the_texts_of_json():
    with (
        serving.Model.load(handler=behaviours.Documents) as documents,
        serving.Model.load(handler=Asks, models={"documents": documents}) as model,
    ):
        assert model.infer(['{"a": 1}', '"b"'])["text"].tolist() == [
            '{"got": {"a": 1}}', '{"got": "b"}',
        ]  # fmt: skip
    handlers = named(documents="Documents") | {"asks": f"{__file__}:Asks"}
    with (
        serving.Server(handler=handlers, handler_processes=1) as server,
        serving.Client(server.address, timeout_s=20) as client,
    ):
        assert client.infer("asks", ['{"a": 1}'])["text"].tolist() == ['{"got": {"a": 1}}']


class Alone(serving.Handler):
    """Says whether two threads were in it at once."""

    inputs, outputs = {"x": serving.Text()}, {"x": serving.Text()}
    inside, meeting = 0, threading.Event()

    def predict(self, x):
        Alone.inside += 1
        self.meeting.wait(0.2)  # for another thread, which would end the wait
        if Alone.inside > 1:
            self.meeting.set()
        Alone.inside -= 1
        return [str(self.meeting.is_set()) for _ in x]


def test_handler_runs_on_one_thread_at_a_time():
    with serving.Model.load(handler=Alone) as model, ThreadPoolExecutor(2) as threads:
        found = [*threads.map(lambda text: model.infer([text])["x"].tolist(), ["a", "b"])]
    assert found == [["False"], ["False"]]

"""What digits' tests check, again, on models of other shapes; and what only they can show."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from serving import Classifier, Client
from serving.catalog.catalog import open_catalog
from serving.config import ModelConfig, Precision
from serving.errors import CorruptModel
from serving.images import Images
from serving.signature import Signature
from tests.serving.client.test_client import (  # noqa: F401 - collected here, too
    test_async_client_keeps_thousands_of_calls_in_flight,
    test_client_and_classifier_refuse_the_same_images,
    test_client_answers_as_the_classifier_does,
    test_client_is_safe_to_share_between_threads,
)
from tests.serving.http.peer import HttpPeer
from tests.serving.model import templates
from tests.serving.protocols.test_oip_answers import (  # noqa: F401
    test_repeated_requests_are_answered_as_the_first_was,
)
from tests.serving.protocols.test_oip_infer import (  # noqa: F401
    test_largest_request_is_answered_and_one_more_image_is_refused,
    test_raw_question_has_a_raw_answer_equal_bit_for_bit,
    test_typed_question_has_a_typed_answer_equal_bit_for_bit,
    test_version_output_and_parameters_may_be_named,
)
from tests.serving.protocols.test_oip_metadata import (  # noqa: F401
    test_config_describes_tensors_without_the_batch_axis,
    test_metadata_describes_tensors_with_the_batch_axis,
)
from tests.serving.protocols.test_oip_stream import (  # noqa: F401
    test_stream_is_answered_in_order_and_errors_do_not_end_it,
)
from tests.serving.server.test_server import (  # noqa: F401
    test_largest_request_is_split_and_answered_whole_and_in_order,
    test_served_answers_equal_the_in_process_answers_bit_for_bit,
)
from tests.serving.telemetry.test_metrics import scrape, value
from tests.serving.test_classifier import (  # noqa: F401
    test_many_threads_get_their_own_answers,
    test_pictures_and_rows_are_the_same_images,
    test_predictions_have_the_promised_shapes_and_dtypes,
    test_split_requests_equal_single_images,
)
from tests.serving.transports.test_streams import (  # noqa: F401
    test_bad_message_ends_a_stream_after_the_earlier_answers,
    test_stream_answers_while_the_caller_still_sends,
    test_stream_is_answered_in_order,
)
from tests.support import published
from tests.support.inference_peer import Peer
from tests.support.raw import Raw
from tests.support.servers import RunningServer, running_server


class Model(NamedTuple):
    name: str
    signature: Signature
    precision: Precision


MODELS = (
    Model("letters", templates.LETTERS, "fp32"),
    Model("letters", templates.LETTERS, "int8"),
    Model("glyphs", templates.GLYPHS, "fp32"),
)


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: f"{model.name}-{model.precision}")
def model(request: pytest.FixtureRequest) -> Model:
    model: Model = request.param
    return model


@pytest.fixture(scope="module")
def images(model: Model) -> Images:
    return templates.images_of(model.signature, 500)[0]


@pytest.fixture(scope="module")
def classifier(other_models: Path, model: Model) -> Iterator[Classifier]:
    with Classifier.load(other_models / model.name, precision=model.precision) as classifier:
        yield classifier


@pytest.fixture(scope="module")
def server(other_models: Path, model: Model) -> Iterator[RunningServer]:
    options = ["--model", model.name, "--precision", model.precision]
    options += ["--self-test-interval", "0", "--http-port", "0"]
    with running_server(other_models, *options) as server:
        yield server


JSON = {"Content_Type": "application/json"}
ANY_SIZE = ("grpc.max_receive_message_length", -1)
"""4,096 answers of 300 classes are more than the 4 MiB that clients take unless asked to."""


@pytest.fixture
def raw(server: RunningServer) -> Raw:
    return Raw(server.address, ANY_SIZE)


@pytest.fixture
def peer(server: RunningServer) -> Iterator[Peer]:
    with grpc.insecure_channel(server.address, options=(ANY_SIZE,)) as channel:
        yield Peer(channel)


def test_answers_are_right_and_have_their_labels(client: Client, model: Model) -> None:
    images, classes = templates.images_of(model.signature, 1000)
    answer = client.classify(images.reshape(-1, *model.signature.input_shape))
    np.testing.assert_array_equal(answer.digits, classes)
    names = model.signature.labels or tuple(map(str, range(300)))
    assert answer.labels == [names[number] for number in classes]
    info = client.model_info()
    assert (info.signature, info.test_accuracy) == (model.signature, None)


def test_answers_over_http(server: RunningServer, model: Model) -> None:
    images, classes = templates.images_of(model.signature, 3)
    http = HttpPeer(server.facts["http"])
    tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    tensor["data"] = images.ravel().tolist()
    question = json.dumps({"inputs": [tensor]})
    (output,) = http.post(f"/v2/models/{model.name}/infer", question, **JSON).json["outputs"]
    assert output["shape"] == [3, model.signature.num_classes]
    assert np.reshape(output["data"], output["shape"]).argmax(axis=1).tolist() == classes.tolist()


def test_images_run_are_counted_by_their_class(
    server: RunningServer, client: Client, model: Model
) -> None:
    def counts() -> list[float]:
        samples, digits = scrape(server), range(model.signature.num_classes)
        return [value(samples, "digits_answers_total", digit=str(digit)) for digit in digits]

    images, classes = templates.images_of(model.signature, 400)
    before = counts()
    client.classify(images)
    added = np.array(counts()) - before
    np.testing.assert_array_equal(added, np.bincount(classes, minlength=len(before)))


def test_new_version_takes_over_and_one_of_another_signature_does_not(
    other_models: Path, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, signature, precision = model
    shutil.copytree(other_models, tmp_path, dirs_exist_ok=True)
    config = ModelConfig(models=tmp_path, names=(name,), precision=precision)
    catalog = open_catalog(config)
    templates.publish(tmp_path, name, signature, "2")
    assert catalog.reload()
    templates.publish(tmp_path, name, replace(signature, input_shape=(16, 16)), "3")
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(2):
            assert not catalog.reload()
    assert catalog.models[name].default_version == "2"
    (line,) = caplog.messages
    assert "refused version 3, version 2 stays in service: version 3 has another" in line
    assert f"(16 x 16 uint8 -> {signature.num_classes} classes)" in line
    restarted = open_catalog(config).models[name].default
    assert restarted.version == "3"
    assert restarted.image_signature.input_shape == (16, 16)


def test_graph_that_is_not_what_the_manifest_says_is_corrupt(
    other_models: Path, tmp_path: Path
) -> None:
    shutil.copytree(other_models, tmp_path, dirs_exist_ok=True)
    graph = (tmp_path / "glyphs" / "1" / "model.onnx").read_bytes()
    published.publish(tmp_path / "letters", "2", graph)
    with pytest.raises(CorruptModel) as caught:
        Classifier.load(tmp_path / "letters", version=2)
    assert str(caught.value) == (
        "the manifest says images UINT8 [N, 1024] -> probabilities FP32 [N, 26], "
        "the graph is images UINT8 [N, 64] -> probabilities FP32 [N, 300]"
    )

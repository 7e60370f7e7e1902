"""A model's own settings: Triton's config.pbtxt, and the command line's `--batch`."""

import re

import numpy as np
import pytest

from serving import Client, Model
from serving.config import BatchingConfig, ModelConfig
from serving.errors import ConfigurationError
from serving.model.settings import NO_SETTINGS, parse_settings
from tests.serving.model.graphs import node, rows_model, save, two_layers
from tests.support.servers import serve_command, started

TRITONS = b"""
# A file as Triton's users have it.
name: "net"  platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x", data_type: TYPE_FP32, dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] label_filename: "labels.txt" } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 500 }
instance_group [ { count: 2 kind: KIND_CPU } ]
version_policy: { specific { versions: [ 1, 3 ] } }
default_model_filename: "net.onnx"
optimization { execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" } ] } }
parameters: { key: "batching" value: { string_value: "always" } }
parameters: { key: "max_run_seconds" value: { string_value: "2.5" } }
"""


def test_tritons_file_is_read():
    settings = parse_settings(TRITONS)
    assert (settings.batching, settings.max_batch_size, settings.instances) == ("always", 8, 2)
    assert settings.max_queue_delay_s == 0.0005
    assert (settings.versions, settings.file_name, settings.device) == ("1,3", "net.onnx", "cpu")
    assert settings.ignored == ("optimization",)
    assert settings.tensors == (("x", "FP32", (4,)), ("y", "FP32", (-1,)))
    assert settings.of(BatchingConfig(max_batch_size=4)).max_batch_size == 4
    assert settings.of(BatchingConfig()).max_batch_size == 8
    assert settings.of(BatchingConfig()).max_queue_delay_s == 0.0005
    assert settings.of(BatchingConfig()).max_run_s == 2.5
    assert NO_SETTINGS.of(BatchingConfig(max_run_s=7)).max_run_s == 7


def test_empty_file_sets_nothing():
    assert parse_settings(b"# nothing\n") == NO_SETTINGS
    assert parse_settings(b"max_batch_size: 0").batching == "never"
    assert parse_settings(b"version_policy { latest { num_versions: 2 } }").num_latest == 2


@pytest.mark.parametrize(("text", "reason"), [
    ("max_batchsize: 4", "there is no field 'max_batchsize'"),
    ("max_batch_size: many", "Couldn't parse integer: many"),
    ("max_batch_size: -1", "max_batch_size: expected 0 or more, got -1"),
    ("dynamic_batching { max_queue_delay: 3 }", 'has no field named "max_queue_delay"'),
    ("dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }",
     "max_queue_delay_microseconds: expected at most 1000000000000, got 18446744073709551615"),
    ("backend: 'python'", "backend: expected onnxruntime, got 'python'"),
    ("ensemble_scheduling { step [] }", "ensemble_scheduling: ensembles are not served here"),
    ("version_policy { specific { versions: [0] } }", "expected versions from 1 on"),
    ("default_model_filename: '../net.onnx'", "expected a name in the version's folder"),
    ("default_model_filename: 'net\\000.onnx'", r"version's folder, got 'net\x00"),
    ("input [ { name: 'x' data_type: 99 } ]", "data_type: there is no type 99"),
    ("parameters { key: 'batching' value { string_value: 'yes' } }", "got 'yes'"),
    ("parameters { key: 'max_run_seconds' value { string_value: '0' } }", "above 0, got '0'"),
    ("parameters { key: 'max_run_seconds' value { string_value: '1e9' } }", "above 0, got '1e9'"),
    ("input [ { name: 'x' ", "input: a bracket is not closed"),
    ("name: 'x", "a text has no end"),
    ("optimization " + "{ a " * 40, "nested more than 16 deep"),
    ("instance_group [ { count: 2000000 } ]", "at most 1024 expected"),
    ("instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU } ]", "one kind of device expected"),
    ("\xff", "it is no text in UTF-8"),
])  # fmt: skip
def test_mistake_is_one_line_with_the_field(text, reason):
    with pytest.raises(ConfigurationError, match=re.escape(reason)) as caught:
        parse_settings(text.encode("latin-1"))
    assert str(caught.value).startswith("config.pbtxt: ")
    assert "\n" not in str(caught.value)


def folder(tmp_path, settings, model=None, name="model.onnx"):
    version = tmp_path / "net" / "1"
    version.mkdir(parents=True)
    save(model or two_layers(), version, name)
    (tmp_path / "net" / "config.pbtxt").write_text(settings)
    return tmp_path / "net"


def test_settings_decide_how_a_model_is_run(tmp_path):
    net = folder(tmp_path, "max_batch_size: 2 default_model_filename: 'net.onnx'", name="net.onnx")
    with Model.load(net) as model:
        assert model.served.tensors.is_batchable
        assert model.batching.max_batch_size == 2
        assert model.run(x=np.ones((5, 4), np.float32))["y"].shape == (5, 3)
    (net / "config.pbtxt").write_text("max_batch_size: 0 default_model_filename: 'net.onnx'")
    with Model.load(net) as model:
        assert model.served.batching == "not batchable: the operator's setting"


def test_graph_that_is_not_as_the_settings_say_is_not_served(tmp_path):
    net = folder(tmp_path, "max_batch_size: 8 input { name: 'x' data_type: TYPE_FP32 dims: [5] }")
    with pytest.raises(Exception, match=r"expected x FP32 \[5\] without the batch axis, the graph"):
        Model.load(net)
    (net / "config.pbtxt").write_text("input { name: 'z' dims: [4] }")
    with pytest.raises(Exception, match="the graph has no tensor 'z'"):
        Model.load(net)


def test_promise_of_the_operator_batches_and_is_logged(tmp_path):
    mixing = rows_model(node("ReduceMax", ["x"], ["m"]), node("Div", ["x", "m"], ["y"]))
    folder(tmp_path, "", mixing)
    with started([*serve_command(tmp_path), "--batch", "net=always"]) as server:
        with Client(server.address) as client:
            client.infer("net", x=np.ones((2, 4), np.float32))
        server.stop()
        lines = server.process.stderr.read()
    assert "batched by the operator's setting (m (ReduceMax): over rows)" in lines


def test_mistake_in_settings_of_one_model_leaves_the_others(tmp_path):
    folder(tmp_path, "nonsense: 1")
    other = tmp_path / "other" / "1"
    other.mkdir(parents=True)
    save(two_layers(), other)
    with started(serve_command(tmp_path)) as server:
        with Client(server.address) as client:
            assert client.infer("other", x=np.ones((1, 4), np.float32))["y"].shape == (1, 3)
        server.stop()
        assert "net is not served: config.pbtxt: there is no field 'nonsense'" in (
            server.process.stderr.read()
        )


@pytest.mark.parametrize("text", ["net", "net=sometimes", "=always"])
def test_batch_option_is_a_name_and_a_mode(text):
    with pytest.raises(ConfigurationError, match="batch must be NAME=auto"):
        ModelConfig(batch=(text,))

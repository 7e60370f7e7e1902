"""A model's own settings: Triton's config.pbtxt, and the command line's `--batch`."""

import dataclasses
import re

import numpy as np
import pytest

from serving import Client, Model
from serving.config import BatchingConfig, ModelConfig
from serving.errors import ConfigurationError
from serving.model import loading
from serving.model.loading import load_model
from serving.model.onnx_runtime import SessionSettings
from serving.model.settings import NO_SETTINGS
from serving.model.settings_file import parse_settings, read_settings, statements
from serving.model.verdicts import Verdict
from tests.serving.model.graphs import node, rows_model, save, two_layers
from tests.support.servers import ended, serve_command, started

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
    assert settings.ignored == (
        "optimization", "output.label_filename", "dynamic_batching.preferred_batch_size",
    )  # fmt: skip
    assert settings.tensors == (("x", "FP32", (4,)), ("y", "FP32", (-1,)))
    assert settings.of(BatchingConfig(max_batch_size=4)).max_batch_size == 4
    assert settings.of(BatchingConfig()).max_batch_size == 8
    assert settings.of(BatchingConfig()).max_queue_delay_s == 0.0005
    assert settings.of(BatchingConfig()).max_run_s == 2.5
    assert NO_SETTINGS.of(BatchingConfig(max_run_s=7)).max_run_s == 7


FIELDS = {
    # file: the settings that it changes
    "max_batch_size: 0": {"batching": "never"},
    "max_batch_size: 1": {"max_batch_size": 1, "has_batch_axis": True},
    "max_batch_size: 9": {"max_batch_size": 9, "has_batch_axis": True},
    "name: 'net'": {"name": "net"},
    "backend: 'onnxruntime'": {}, "platform: 'onnxruntime_onnx'": {},
    "dynamic_batching {}": {},
    "dynamic_batching { max_queue_delay_microseconds: 0 }": {},
    "dynamic_batching { max_queue_delay_microseconds: 1 }": {"max_queue_delay_s": 1e-6},
    "dynamic_batching { max_queue_delay_microseconds: 1000000000000 }": {"max_queue_delay_s": 1e6},
    "instance_group { kind: KIND_GPU }": {"device": "cuda"},
    "instance_group { kind: KIND_CPU count: 3 }": {"device": "cpu", "instances": 3},
    "instance_group { kind: KIND_AUTO count: 1 }": {"instances": 1},
    "instance_group [ { count: 2 }, { count: 3 } ]": {"instances": 5},
    "instance_group [ { count: 2 }, { } ]": {"instances": 3},
    "instance_group [ { }, { } ]": {},
    "instance_group { count: 1024 }": {"instances": 1024},
    "version_policy { all {} }": {"versions": "all"},
    "version_policy { latest {} }": {"versions": "latest"},
    "version_policy { latest { num_versions: 3 } }": {"versions": "latest", "num_latest": 3},
    "version_policy { specific { versions: [ 2, 1 ] } }": {"versions": "2,1"},
    "default_model_filename: 'a.onnx'": {"file_name": "a.onnx"},
    "input { name: 'x' data_type: TYPE_STRING dims: [ 3, -1 ] }": {
        "tensors": (("x", "BYTES", (3, -1)),)
    },
    "output { name: 'y' dims: [ 4 ] reshape { shape: [ 2, 2 ] } }": {
        "tensors": (("y", None, (2, 2)),)
    },
    "output { name: 'y' dims: [ 1 ] reshape { } }": {"tensors": (("y", None, ()),)},
    "batching=auto": {}, "batching=never": {"batching": "never"},
    "batching=always": {"batching": "always"},
    "max_run_seconds=0.000001": {"max_run_s": 1e-6},
    "max_run_seconds=999999": {"max_run_s": 999_999.0},
    "intra_op_thread_count=1": {"num_threads": 1},
    "intra_op_thread_count=1024": {"num_threads": 1024},
    "enable_mem_arena=1": {"keeps_memory": True}, "enable_mem_arena=0": {"keeps_memory": False},
    "session.dynamic_block_base=4": {"config": {"session.dynamic_block_base": "4"}},
    "use_tf32=0": {"provider_options": {"use_tf32": "0"}},
    **{f"cudnn_conv_algo_search={number}": {"provider_options": {"cudnn_conv_algo_search": name}}
       for number, name in (("0", "EXHAUSTIVE"), ("1", "HEURISTIC"), ("2", "DEFAULT"),
                            ("x", "x"))},
}  # fmt: skip


def file_of(text):
    """A line `key=value` is that of a parameter."""
    key, equals, value = text.partition("=")
    if not equals:
        return text.encode()
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}".encode()


@pytest.mark.parametrize("text", FIELDS)
def test_field_sets_this_and_nothing_else(text):
    found, plain = parse_settings(file_of(text)), parse_settings(b"")
    changed = {
        each.name: getattr(found, each.name)
        for each in dataclasses.fields(plain)
        if getattr(found, each.name) != getattr(plain, each.name)
    }
    assert changed == FIELDS[text]


@pytest.mark.parametrize(
    "text",
    [
        "intra_op_thread_count=1025", "intra_op_thread_count=", "intra_op_thread_count=1000000",
        "enable_mem_arena=2", "max_run_seconds=1000000", "max_run_seconds=1.0000001",
        "max_run_seconds=0.0", "batching=Always", "instance_group { count: 1025 }",
        "dynamic_batching { max_queue_delay_microseconds: 1000000000001 }",
        "default_model_filename: 'a/b.onnx'", "default_model_filename: '.onnx'",
        "version_policy { specific { } }", "version_policy { specific { versions: [ 1, 0 ] } }",
        "backend: 'onnx'", "platform: 'tensorrt_plan'",
    ],
)  # fmt: skip
def test_value_beyond_a_limit_is_refused_with_its_field(text):
    field = re.split("[=:{ ]", text)[0]
    with pytest.raises(ConfigurationError, match=field):
        parse_settings(file_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "LONG: 1", "backend: 'LONG'", "max_run_seconds=LONG", "batching=LONG",
        "default_model_filename: '/LONG'", "intra_op_thread_count=LONG",
        "parameters [ { key: 'LONG' }, { key: 'LONG' } ]",
    ],
)  # fmt: skip
def test_value_in_a_message_has_a_hundred_characters(text):
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(file_of(text.replace("LONG", "x" * 300)))
    found = max(re.findall("/?x+", str(caught.value)), key=len)
    assert len(found) == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1 b { c: 2 # d: 3\n } e: [ 4, 5 ]", ["a: 1", "b { c: 2 # d: 3\n }", "e: [ 4, 5 ]"]),
        ("a: b c: 'd: {' e < f: 1 >", ["a: b", "c: 'd: {'", "e < f: 1 >"]),
        ('a: "\\"" b: 1; c: 2', ['a: "\\""', "b: 1;", "c: 2"]), ("", []), ("# a", []),
        ("_a { " + "{ " * 15 + "} " * 16, ["_a { " + "{ " * 15 + "} " * 15 + "}"]),
    ],
)  # fmt: skip
def test_file_is_divided_into_its_fields(text, expected):
    assert [part.strip() for _, part in statements(text)] == expected


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
    ("parameters { key: 'batchin' value { string_value: 'never' } }",
     "parameters: there is no 'batchin': did you mean batching?"),
    ("parameters { key: 'Max-Run-Second' value { string_value: '3' } }", "mean max_run_seconds?"),
    ("parameters [ { key: 'x' }, { key: 'x' } ]", "parameters: 'x' stands there twice"),
    ("input { name: 'x' data_type: TYPE_BF16 }", "data_type: BF16 is not served here"),
    ("parameters { key: 'max_run_seconds' value { string_value: '0' } }", "above 0, got '0'"),
    ("parameters { key: 'max_run_seconds' value { string_value: '1e9' } }", "above 0, got '1e9'"),
    ("parameters { key: 'intra_op_thread_count' value { string_value: '0' } }",
     "parameters: intra_op_thread_count: expected 1 to 1024, got '0'"),
    ("parameters { key: 'enable_mem_arena' value { string_value: 'yes' } }", "0 to 1, got 'yes'"),
    ("parameters { key: 'intra_op_threads_count' }", "did you mean intra_op_thread_count?"),
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


def test_field_and_parameter_without_an_effect_is_named():
    text = b"""
    parameters { key: "execution_mode" value { string_value: "1" } }
    parameters { key: "session.model_external_initializers_file_folder_path" value {} }
    parameters { key: "team" value { string_value: "vision" } }
    parameters { key: "batching" value { string_value: "never" } }
    instance_group { count: 1 gpus: [ 1 ] rate_limiter { resources { name: "r" } } }
    dynamic_batching { preserve_ordering: true }
    input [ { name: "x" dims: [ 4 ] optional: true } ]
    """
    assert parse_settings(text).ignored == (
        "input.optional", "instance_group.gpus", "instance_group.rate_limiter",
        "dynamic_batching.preserve_ordering", "parameters.execution_mode",
        "parameters.session.model_external_initializers_file_folder_path", "parameters.team",
    )  # fmt: skip


def test_parameters_of_the_session_are_those_of_triton():
    text = b"""
    parameters { key: "intra_op_thread_count" value { string_value: "2" } }
    parameters { key: "enable_mem_arena" value { string_value: "0" } }
    parameters { key: "session.set_denormal_as_zero" value { string_value: "1" } }
    parameters { key: "cudnn_conv_algo_search" value { string_value: "1" } }
    parameters { key: "gpu_mem_limit" value { string_value: "4294967296" } }
    """
    settings = parse_settings(text)
    assert settings.ignored == ()
    assert settings.session("cuda", "fp32") == SessionSettings(
        device="cuda", num_threads=2, config={"session.set_denormal_as_zero": "1"},
        provider_options={"cudnn_conv_algo_search": "HEURISTIC", "gpu_mem_limit": "4294967296"},
    )  # fmt: skip
    assert settings.keeps_memory is False
    assert parse_settings(b"").keeps_memory is None


def test_settings_of_another_model_are_refused(tmp_path):
    net = folder(tmp_path, "name: 'net'")
    assert read_settings(net).name == "net"
    (tmp_path / "alias").symlink_to(net)
    assert read_settings(tmp_path / "alias").name == "net"
    (net / "config.pbtxt").write_text("name: 'other'")
    with pytest.raises(ConfigurationError, match="name: it is that of model 'other', expected 'ne"):
        read_settings(net)


def test_settings_beside_a_file_belong_to_one_model(tmp_path, caplog):
    net = save(two_layers(), tmp_path, "net.onnx")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 3")
    assert read_settings(net).max_batch_size == 3
    other = save(two_layers(), tmp_path, "other.onnx")
    assert read_settings(other) == NO_SETTINGS
    assert "model other: config.pbtxt is not used: 2 models are beside it" in caplog.text
    (tmp_path / "other.config.pbtxt").write_text("name: 'other' max_batch_size: 4")
    assert read_settings(other).max_batch_size == 4
    assert read_settings(net) == NO_SETTINGS


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
        assert model.infer({"x": np.ones((5, 4), np.float32)})["y"].shape == (5, 3)
    (net / "config.pbtxt").write_text("max_batch_size: 0 default_model_filename: 'net.onnx'")
    with Model.load(net) as model:
        assert model.served.batching == "batching off: the operator's setting"


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
            client.infer("net", {"x": np.ones((2, 4), np.float32)})
        server.stop()
        lines = server.process.stderr.read()
    assert "batching on by the operator's setting, not proved: m (ReduceMax): over rows" in lines


@pytest.mark.parametrize(("mode", "most"), [("auto", 1), ("never", 1), ("always", 512)])
def test_mode_decides_over_golden_samples_too(model_dir, mode, most, monkeypatch):
    """As if the graph of a classifier were not proved: its samples are answered in any batch."""
    judged = loading._source_of

    def unproved(*facts):
        return judged(*facts)._replace(verdict=Verdict("the node mixes rows"))

    monkeypatch.setattr(loading, "_source_of", unproved)
    model = load_model(model_dir, device="cpu", batching=mode)
    assert model.manifest.golden_probabilities
    assert min(512, model.settings.max_batch_size) == most


def test_mistake_in_settings_of_one_model_leaves_the_others(tmp_path):
    folder(tmp_path, "nonsense: 1")
    other = tmp_path / "other" / "1"
    other.mkdir(parents=True)
    save(two_layers(), other)
    with started(serve_command(tmp_path)) as server:
        with Client(server.address) as client:
            assert client.infer("other", {"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 3)
        server.stop()
        assert "net is not served: config.pbtxt: there is no field 'nonsense'" in (
            server.process.stderr.read()
        )


def test_batch_option_for_no_model_is_an_error(tmp_path):
    folder(tmp_path, "")
    command = serve_command(tmp_path, "--batch", "nope=never")
    done = ended(command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "batch must be about a model: net, got 'nope=never'" in line
    with pytest.raises(ConfigurationError, match="given once for each model, got 'net twice'"):
        ModelConfig(batch=("net=auto", "net=never"))


@pytest.mark.parametrize("text", ["net", "net=sometimes", "=always"])
def test_batch_option_is_a_name_and_a_mode(text):
    with pytest.raises(ConfigurationError, match="batch must be NAME=auto"):
        ModelConfig(batch=(text,))

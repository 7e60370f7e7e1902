"""config.pbtxt, row by row of its tables: what each field and each parameter sets."""

import dataclasses
from dataclasses import replace

import pytest

from serving.config import BatchingConfig
from serving.errors import ConfigurationError
from serving.model.onnx_runtime import SessionSettings
from serving.model.settings import NO_SETTINGS
from serving.model.settings_file import parse_settings, read_settings
from tests.serving.model.test_settings import file_of


@pytest.mark.parametrize("name", [
    "runtime", "batch_input", "batch_output", "optimization", "metric_tags", "model_warmup",
    "model_operations", "cc_model_filenames", "model_transaction_policy", "response_cache",
    "model_repository_agents", "model_metrics",
])  # fmt: skip
def test_field_of_tritons_that_has_no_meaning_here_is_named_and_served(name):
    assert parse_settings(f"{name} {{ x: 1 }}".encode()) == replace(NO_SETTINGS, ignored=(name,))


@pytest.mark.parametrize(
    ("name", "models"),
    [("ensemble_scheduling", "ensembles"), ("sequence_batching", "models with a state")],
)
def test_field_that_would_change_answers_is_refused(name, models):
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(f"{name} {{ x: 1 }}".encode())
    assert str(caught.value) == f"config.pbtxt: {name}: {models} are not served here"


SESSION = (
    "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us",
    "session.force_spinning_stop", "session.dynamic_block_base", "session.set_denormal_as_zero",
    "session.disable_prepacking", "session.disable_quant_qdq", "session.enable_quant_qdq_cleanup",
    "session.qdqisint8allowed", "session.use_device_allocator_for_initializers",
    "session.intra_op_thread_affinities",
)  # fmt: skip
CUDA = ("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "use_tf32",
        "do_copy_in_default_stream")  # fmt: skip
TRITONS_OWN = ("inter_op_thread_count", "execution_mode", "enable_mem_pattern",
               "memory.enable_memory_arena_shrinkage", "session.load_model_format")  # fmt: skip


@pytest.mark.parametrize("key", [*SESSION, *CUDA, *TRITONS_OWN])
def test_parameter_is_of_the_session_of_cuda_or_of_nobody_here(key):
    expected = {
        SESSION: {"config": {key: "x"}}, CUDA: {"provider_options": {key: "x"}},
        TRITONS_OWN: {"ignored": (f"parameters.{key}",)},
    }  # fmt: skip
    (change,) = [each for keys, each in expected.items() if key in keys]
    assert parse_settings(file_of(f"{key}=x")) == replace(NO_SETTINGS, **change)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [("spot_checks=on", "spot_checks", "on"), ("spot_checks=off", "spot_checks", "off"),
     ("enable_mem_arena=0", "keeps_memory", False)],
)  # fmt: skip
def test_parameter_of_ours_sets_its_field(key, field, value):
    assert parse_settings(file_of(key)) == replace(NO_SETTINGS, **{field: value})


@pytest.mark.parametrize(
    ("number", "delay_s"), [(0, None), (1, 1e-6), (2500, 0.0025), (10**12, 1e6)]
)
def test_delay_of_a_queue_is_in_microseconds_and_at_most_that_of_the_server(number, delay_s):
    text = "dynamic_batching {{ max_queue_delay_microseconds: {} }}"
    assert parse_settings(text.format(number).encode()).max_queue_delay_s == delay_s
    with pytest.raises(ConfigurationError, match="at most 1000000000000, got 1000000000001"):
        parse_settings(text.format(10**12 + 1).encode())


def test_spot_checks_are_on_or_off():
    with pytest.raises(ConfigurationError, match=r"spot_checks: expected on or off, got 'yes'$"):
        parse_settings(file_of("spot_checks=yes"))


def test_settings_of_a_model_go_before_those_of_the_server():
    server = BatchingConfig(max_batch_size=64, max_queue_delay_s=0.5, max_run_s=9.0,
                            spot_checks="on")  # fmt: skip
    assert NO_SETTINGS.of(server) == server
    own = replace(NO_SETTINGS, max_batch_size=7, max_queue_delay_s=0.0, max_run_s=3.0,
                  spot_checks="off")  # fmt: skip
    assert own.of(server) == replace(server, max_batch_size=7, max_queue_delay_s=0.0,
                                     max_run_s=3.0, spot_checks="off")  # fmt: skip
    assert NO_SETTINGS.session("cpu", "int8") == SessionSettings(device="cpu", precision="int8")
    more = replace(NO_SETTINGS, num_threads=3, keeps_memory=True, config={"a": "b"},
                   provider_options={"c": "d"})  # fmt: skip
    assert more.session("cuda", "fp32") == SessionSettings(
        device="cuda", precision="fp32", num_threads=3, keeps_memory=True, config={"a": "b"},
        provider_options={"c": "d"},
    )  # fmt: skip


def test_settings_that_nobody_gives_are_these():
    assert dataclasses.asdict(NO_SETTINGS) == {
        "batching": "auto", "max_batch_size": 1 << 31, "max_queue_delay_s": None,
        "max_run_s": None, "spot_checks": None, "instances": None, "num_threads": 0,
        "keeps_memory": None, "provider_options": {}, "config": {}, "device": "auto",
        "versions": None, "num_latest": 1, "file_name": None, "tensors": (),
        "has_batch_axis": False, "name": None, "ignored": (),
    }  # fmt: skip


@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1])
def test_file_has_64_kibibytes_at_most(size, tmp_path):
    text = "max_batch_size: 3 #"
    (tmp_path / "config.pbtxt").write_text(text + "x" * (size - len(text)))
    if size > 64 << 10:
        with pytest.raises(ConfigurationError, match=r"^can't read config\.pbtxt: "):
            read_settings(tmp_path)
    else:
        assert read_settings(tmp_path).max_batch_size == 3

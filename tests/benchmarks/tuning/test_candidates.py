import pytest

from benchmarks.tuning.candidates import Candidate, config_text, grid
from serving.errors import ConfigurationError
from serving.model.settings_file import parse_settings

BUSY = Candidate(threads=2, instances=3, batch=32, delay_s=0.002)
OLD = """\
# the operator's
name: "net"
max_batch_size: 64
dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 7 }
parameters { key: "intra_op_thread_count" value: { string_value: "9" } }
parameters { key: "enable_mem_arena" value: { string_value: "1" } }
instance_group [ { count: 9 } ]
optimization { graph { level: 1 } }
"""


def test_written_settings_are_those_that_the_server_reads():
    settings = parse_settings(config_text(BUSY).encode())
    assert (settings.num_threads, settings.instances) == (2, 3)
    assert (settings.max_batch_size, settings.max_queue_delay_s) == (32, 0.002)
    assert settings.device == "cpu"


def test_other_settings_of_the_model_stay():
    text = config_text(BUSY, OLD, ["measured", "so"])
    settings = parse_settings(text.encode())
    assert (settings.num_threads, settings.instances, settings.max_batch_size) == (2, 3, 32)
    assert (settings.name, settings.keeps_memory) == ("net", True)
    assert "optimization { graph { level: 1 } }" in text
    assert text.startswith("# measured\n# so\n")
    assert config_text(BUSY, text, ["measured", "so"]) == text


def test_defaults_set_nothing():
    assert parse_settings(config_text(Candidate()).encode()) == parse_settings(b"")


def test_malformed_settings_are_refused():
    with pytest.raises(ConfigurationError, match="a text has no end"):
        config_text(BUSY, 'name: "net')


def test_grid_uses_no_more_threads_than_cores_and_no_larger_batches_than_callers():
    found = grid(4, 64)
    assert found[0].is_default
    assert len(set(found)) == len(found)
    assert {(c.threads, c.instances) for c in found[1:]} == {
        (1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1),
    }  # fmt: skip
    assert {c.batch for c in found[1:]} == {1, 8, 32, 64}
    assert {c.delay_s for c in found if c.batch == 1} == {None}


def test_models_whose_rows_do_not_share_runs_have_no_batches_to_try():
    assert [(c.threads, c.instances, c.batch) for c in grid(2, 64, is_batched=False)] == [
        (None, None, None), (1, 1, None), (1, 2, None), (2, 1, None),
    ]  # fmt: skip


def test_every_device_has_its_defaults():
    found = grid(1, 1, ("cpu", "cuda"))
    assert [str(c) for c in found if c.is_default] == [
        "the server's defaults", "the server's defaults on cuda",
    ]  # fmt: skip
    assert any("KIND_GPU" in line for line in found[-1].fields())

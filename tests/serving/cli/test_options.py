"""Each command's options where a caller names none of them, and which he may name."""

from dataclasses import fields
from pathlib import Path

import pytest

from serving.cli import target
from serving.cli.commands import options_of, parser_of
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError

REPOSITORY = {"model_cache": None, "version": None, "device": "auto", "precision": "fp32"}
ACCESS = {"tls_ca": None, "tls_cert": None, "tls_key": None, "token_file": None}
SERVER = {"target": None, "timeout": 10.0, "json": False, **ACCESS}


def parsed(*words):
    options = vars(parser_of(words[0]).parse_args([*words]))
    assert options.pop("command") == words[0]
    assert callable(options.pop("run"))
    assert not options.pop("variables")
    return options


def test_infer_runs_a_model_here_on_values():
    assert parsed("infer", "net") == {
        "model": "net", "values": [], "random": False, "input": "tensors", "labels": None,
        "around": None, **SERVER, **REPOSITORY,
    }  # fmt: skip
    words = """
        infer net x=1 --random y=2 --input image --labels l --handler a.py --target h:1
        --timeout 2s --tls-ca ca --tls-cert cert --tls-key key --token-file t --json --models m
        --model-cache c --version 3 --device cpu --precision int8
    """
    assert parsed(*words.split()) == {
        "model": "net", "values": ["x=1", "y=2"], "random": True, "input": "image",
        "labels": Path("l"), "around": "a.py", "target": "h:1", "timeout": 2.0, "json": True,
        "tls_ca": Path("ca"), "tls_cert": Path("cert"), "tls_key": Path("key"),
        "token_file": Path("t"), "models": "m", "model_cache": Path("c"), "version": "3",
        "device": "cpu", "precision": "int8",
    }  # fmt: skip


def test_info_describes_the_models_of_the_repository():
    assert parsed("info") == {
        "file": None, "around": None, "model": None, **SERVER, **REPOSITORY,
    }  # fmt: skip
    found = parsed("info", "net.onnx", "--model", "a", "--handler", "b.py")
    assert (found["file"], found["model"], found["around"]) == (Path("net.onnx"), "a", "b.py")


def test_health_is_that_of_the_usual_server():
    assert parsed("health") == {
        "target": "127.0.0.1:50051", "model": "", "timeout": 5.0, "tls_server_name": None, **ACCESS,
    }  # fmt: skip


def test_optimize_publishes_nothing():
    assert parsed("optimize", "net", "--samples", "s") == {
        "model": "net", "samples": Path("s"), "name": "", "models": "models", "version": None,
        "device": "auto", "portable": False, "new_signature": False, "seed": 0, "time": 600.0,
        "output": Path("optimized"), "classes": "", "score": "", "most_loss": 0.2,
        "least_equal": 99.0, "least_cosine": 0.995, "most_error": 2.0, "few_samples": False,
    }  # fmt: skip


NOT_OPTIONS = {
    ModelConfig: {"models", "url", "model", "names", "files"},
    ServerConfig: {"usual_ports", "labels", "security"},
    SecurityConfig: {"tokens"}, BatchingConfig: set(),
}  # fmt: skip
"""Fields that others than an option of the same name set."""


def test_serve_has_an_option_for_each_setting_with_its_default(monkeypatch):
    monkeypatch.delenv("SERVING_HTTP_PORT")
    found = parsed("serve")
    own = {"files": [], "names": None, "labels": None, "http_port": "auto", "metrics_port": "auto"}
    assert {name: found.pop(name) for name in own} == own
    expected = {
        each.name: getattr(kind(), each.name)
        for kind, others in NOT_OPTIONS.items() for each in fields(kind)
        if each.name not in others | own.keys()
    }  # fmt: skip
    lists = {name: [] for name, each in expected.items() if each == ()}
    assert found == {**expected, **lists}


@pytest.mark.parametrize("name", ["serve", "infer", "optimize", "health"])
def test_options_are_listed(name):
    listed = options_of(name)
    assert {"--help", "-h"} <= {*listed}
    expected = {"serve": "--workers", "infer": "--random",
                "optimize": "--samples", "health": "--tls-server-name"}  # fmt: skip
    assert [each for each, option in expected.items() if option in listed] == [name]


@pytest.mark.parametrize("is_here", [True, False])
def test_token_is_the_first_of_the_file_or_of_the_environment(is_here, tmp_path, monkeypatch):
    first, second = "a" * 40, "b" * 40
    (tmp_path / "tokens").write_text(f"# two\n{first}\n{second}\n")
    file = ["--token-file", str(tmp_path / "tokens")] if is_here else []
    options = parser_of("health").parse_args(["health", *file])
    assert target.token_of(options) == (first if is_here else None)
    monkeypatch.setenv("SERVING_TOKEN", second)
    assert target.token_of(options) == (first if is_here else second)


def test_client_is_made_of_the_options(monkeypatch):
    made = []
    monkeypatch.setattr("serving.client.Client", lambda *given, **more: made.append((given, more)))
    words = "infer net --target h:1 --timeout 2s --tls-ca ca --tls-cert cert --tls-key key"
    target.client_of(parser_of("infer").parse_args(words.split()))
    assert made == [(("h:1",), {
        "timeout_s": 2.0, "token": None, "tls_ca": Path("ca"), "tls_cert": Path("cert"),
        "tls_key": Path("key"),
    })]  # fmt: skip


def test_handler_is_for_a_model_that_is_loaded_here():
    parse = parser_of("infer").parse_args
    target.require_here(parse(["infer", "net", "--handler", "a.py"]))
    target.require_here(parse(["infer", "net", "--target", "h:1"]))
    with pytest.raises(ConfigurationError) as caught:
        target.require_here(parse(["infer", "net", "--handler", "a.py", "--target", "h:1"]))
    assert str(caught.value) == (
        "--handler is for a model that is loaded here: leave out --target, or give it to serve"
    )

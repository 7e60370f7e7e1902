"""The command line, as people and scripts use it."""

import json
import os
import socket
import sys
from argparse import ArgumentTypeError
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.__main__ import main
from serving.cli.commands import parser
from serving.commandline import values
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from tests.serving.model.graphs import save, two_layers
from tests.support.servers import running_server, serve_command, started

ROOT = Path(__file__).parents[3]


@pytest.fixture
def pictures(tmp_path, images):
    """Three test digits as PNG files."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image.reshape(28, 28)).save(path)
    return paths


def test_classify_prints_digit_and_probability_per_file(models, pictures, images, classifier, run):
    code, out, err = run("classify", *pictures, "--models", models)
    assert (code, err) == (0, [])
    expected = classifier.classify(images[:3])
    for path, line, digit in zip(pictures, out, expected.digits, strict=True):
        assert line.startswith(f"{path}: {digit} (")
        assert line.endswith("%)")


def test_classify_asks_a_server_and_gets_the_same(models, server, pictures, run):
    local = run("classify", *pictures, "--models", models, "--json")
    remote = run("classify", *pictures, "--target", server.address, "--json")
    assert local == remote
    assert local.code == 0


def test_json_is_one_object_a_line_errors_included(models, pictures, run):
    pictures[1].write_text("no picture")
    code, out, err = run("classify", *pictures, "--models", models, "--json")
    first, second, third = map(json.loads, out)
    assert (code, err) == (1, ["1 of 3 failed"])
    assert [first["picture"], second["picture"], third["picture"]] == list(map(str, pictures))
    assert "error" in second
    assert len(first["probabilities"]) == 10
    assert first["digit"] == np.argmax(first["probabilities"])


def test_info_tells_the_same_of_a_server_and_of_files(models, server, run):
    sources = ("--models", models), ("--target", server.address)
    near, far = (json.loads(run("info", *each, "--json").out[0]) for each in sources)
    assert near["batching"] == "batching on: row independence proved"
    assert far.pop("max_message_bytes") > 4096 * 784
    assert near == far
    code, out, _ = run("info", "--models", models)
    assert code == 0
    assert any(line.startswith("test accuracy") for line in out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--models", "nowhere"),
            "no model in nowhere: expected NAME/1/model.onnx, NAME.onnx or NAME/MLmodel there",
        ),
        (("--version", "9"), "model 'digits' has no version '9'"),
        (("--version", "../1"), "model 'digits' has no version '../1'"),
        (("--precision", "int8", "--device", "cuda"), "int8 runs on the CPU only"),
        (("--max-batch-size", "0"), "max_batch_size must be at least 1, got 0"),
        (("--max-batch-size", "16385"), "max_batch_size must be at most 16384, got 16385"),
        (("--queue-capacity", "5"), "queue_capacity must be at least max_request_rows"),
        (("--port", "70000"), "port must be 0 to 65535, got 70000"),
        (("--served-name", "two words"), "served_name must be 1 to 128 visible characters"),
        (
            ("--host", "unix:/a", "--workers", "2"),
            "host unix:/a: a Unix socket serves one process: leave out --workers",
        ),
        (("--http-host", "unix:/a"), "http_host must be an address: only host may be a Unix"),
        (("--metrics-host", "unix:/a"), "metrics_host must be an address: only host may be"),
        (("--workers", "0"), "workers must be at least 1, got 0"),
        (("--drain", "-1"), "drain must be 0 to 1e6, got -1.0"),
        (("--drain", "inf"), "drain must be 0 to 1e6, got inf"),
        (("--max-queue-delay", "inf"), "max_queue_delay must be 0 to 1e6, got inf"),
        (("--self-test-interval", "-1"), "self_test_interval must be 0 to 1e6, got -1.0"),
        (("--reload-interval", "-1"), "reload_interval must be 0 to 1e6, got -1.0"),
        (("--reload-interval", "5", "--version", "1"), "reload_interval replaces versions"),
        (("--versions", "newest"), "versions must be latest, all, or numbers such as 3,4, got"),
        (("--version", "1", "--canary", "5%"), "version pins one: versions and canary have no"),
        (("--model", "digits", "a,b", "--served-name", "x"), "served_name is for one model, not"),
        (("--models", "http://127.0.0.1/m.onnx"), "http://127.0.0.1/m.onnx: without TLS it needs"),
        (("--token-file", "none"), "can't read none: No such file or directory"),
        (("--port", "7001", "--http-port", "7001"), "port and http_port must be different"),
        (("--port", "7001", "--metrics-port", "7001"), "port and metrics_port must be different"),
        (("--drain=-5ms",), "drain must be 0 to 1e6, got -0.005"),
        (("README.md",), "README.md: expected an ONNX file, whose name ends in .onnx"),
        (
            ("net.keras",),
            "net.keras: expected an ONNX file: `digit-serving export net.keras --name "
            "NAME` makes one of a Keras model, and `digit-serving serve --models models --model "
            "NAME` serves it",
        ),
        (("--tls-cert", "a.pem"), "tls_key must be given together with tls_cert"),
        (("--tls-client-ca", "a.pem"), "tls_client_ca must be given together with tls_cert"),
        (("--tls-cert", "a.pem", "--tls-key", "b.pem"), "can't read a.pem"),
    ],
)
def test_serve_that_cannot_start_says_why_in_one_line(models, options, message, run):
    ports = ("--port", 0, "--http-port", "off", "--metrics-port", "off")
    code, out, err = run("serve", "--models", models, "--device", "cpu", *ports, *options)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"digit-serving: {message}")


@pytest.mark.parametrize(
    ("named", "asked", "options"),
    [("models/letters", "", ()), ("models", "/digits", ("--model", "digits"))],
)
def test_models_folder_without_the_model_names_the_one_that_has(
    models, named, asked, options, tmp_path, monkeypatch, run
):
    """The first is the argument of `Classifier.load`."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/letters").symlink_to(models / "digits")
    monkeypatch.chdir(tmp_path)
    code, _, err = run("serve", "--models", named, "--port", 0, "--metrics-port", 0, *options)
    is_one = "models/letters is one: --models models --model letters"
    assert (code, err) == (2, [f"digit-serving: no model in {named}{asked}, but {is_one}"])


@pytest.mark.parametrize("command", ["serve", "info", "classify"])
def test_repository_without_a_model_is_named_and_no_model_is(command, tmp_path, run):
    (tmp_path / "notes").mkdir()
    words = ["seven.png"] if command == "classify" else []
    code, _, err = run(command, "--models", tmp_path, *words)
    expected = (
        f"no model in {tmp_path}: expected NAME/1/model.onnx, NAME.onnx or NAME/MLmodel there"
    )
    assert (code, err) == (2, [f"digit-serving: {expected}, found notes"])


def test_wrong_file_is_named_before_a_port_is_opened(tmp_path, run):
    (tmp_path / "README.md").write_text("# Read me")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve", tmp_path / "README.md", "--metrics-port", port)
    assert (code, len(err)) == (2, 1)
    assert err[0].endswith("README.md: expected an ONNX file, whose name ends in .onnx")


def test_info_describes_the_version_of_a_server_that_is_named(tmp_path, run):
    for version in ("1", "2"):
        (tmp_path / "iris" / version).mkdir(parents=True)
        save(two_layers(), tmp_path / "iris" / version)
    with running_server(tmp_path, "--versions", "all") as server:
        code, out, _ = run("info", "--target", server.address, "--version", "1", "--json")
        assert (code, [json.loads(line)["version"] for line in out]) == (0, ["1"])
        code, out, _ = run("info", "--target", server.address, "--json")
        assert (code, [json.loads(line)["version"] for line in out]) == (0, ["2", "1"])
        assert run("info", "--target", server.address, "--version", "9").code == 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SERVING_PROT": "1"}, "unknown variable SERVING_PROT: did you mean SERVING_PORT?"),
        ({"SERVING_OF_PI": "1"}, "unknown variable SERVING_OF_PI: ignored"),
        ({"SERVING_TOKEN": "t" * 32, "SERVING_WORKERS": "2", "SERVING_DEVICE": ""}, ""),
        ({"SERVING_SERVICE_HOST": "10.0.0.1", "SERVING_SERVICE_PORT_GRPC": "50051",
          "SERVING_PORT": "tcp://10.0.0.1:50051", "SERVING_HTTP_PORT": "tcp://10.0.0.1:80",
          "SERVING_PORT_50051_TCP": "tcp://10.0.0.1:50051", "SERVING_PORT_50051_TCP_PROTO": "tcp",
          "SERVING_X_PORT_1_UDP_ADDR": "10.0.0.1", "SERVING_X_PORT": "udp://10.0.0.1:1"}, ""),
    ],
)  # fmt: skip
def test_unknown_variable_is_named(variables, expected, models, monkeypatch, run):
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    code, _, err = run("info", "--models", models)
    assert (code, err) == (0, [f"digit-serving: {expected}"] if expected else [])


def test_environment_configures_a_server(models, monkeypatch):
    for name, text in {
        "MODELS": str(models), "PORT": "0", "METRICS_PORT": "off", "TRANSPORT": "grpcio",
        "REFLECTION": "true", "SERVED_NAME": "mnist", "MAX_BATCH_SIZE": "7", "MODEL": "digits",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SERVING_{name}", text)
    with started([sys.executable, "-m", "serving", "serve"]) as server:
        facts = server.facts
        assert (facts["model"], facts["transport"], facts["metrics"]) == ("mnist", "grpcio", "off")
        assert facts["max_batch_size"] == "7"


def test_options_of_serve_set_their_fields(models, monkeypatch):
    taken: list[object] = []

    async def supervise(*configs):
        taken.extend(configs)
        return True

    monkeypatch.setattr("serving.server.supervisor.supervise", supervise)
    monkeypatch.setattr("serving.system.signals.end_process", lambda code: None)
    options = """
        --max-batch-size 7 --max-queue-delay 0.5 --queue-capacity 99 --slo 5ms --max-run 8
        --max-request-rows 9 --host ::1 --port 7 --metrics-host ::2 --metrics-port off
        --http-host ::3 --http-port 8 --http-host-name a b --http-allow-origin http://c
        --transport grpcio --workers 2 --drain 3 --max-connection-age 4 --reload-interval 5
        --self-test-interval 6 --access-log 5% --otlp-endpoint http://d --reflection
        --allow-repository-control --input image --log-format json --token-file e
        --tls-cert f --tls-key g --tls-client-ca h --canary 5% --versions all --served-name i
        --batch digits=never --max-json-bytes 1M --max-buffered-bytes 9M --max-model-bytes 3G
        --handler j.py --handler k=l.py --allow-handlers --handler-processes 2 --max-handler 5
        --max-handler-bytes 1G --max-response-bytes 64M --max-handler-setup 7
        --allow-missing
    """
    main(["serve", "--models", str(models), *options.split()])
    model, batching, server = taken
    assert batching == BatchingConfig(
        max_batch_size=7, max_queue_delay_s=0.5, queue_capacity=99, slo_s=0.005,
        max_run_s=8, max_request_rows=9, handler_processes=2, max_handler_s=5,
        max_handler_bytes=1 << 30, max_response_bytes=64 << 20,
    )  # fmt: skip
    security = SecurityConfig(
        tls_cert=Path("f"), tls_key=Path("g"), tls_client_ca=Path("h"), token_file=Path("e")
    )
    assert server == ServerConfig(
        host="::1", port=7, metrics_host="::2", metrics_port=None, http_host="::3", http_port=8,
        http_host_names=["a", "b"], http_allow_origins=["http://c"],
        transport="grpcio", workers=2, drain_s=3, max_connection_age_s=4, reload_interval_s=5,
        self_test_interval_s=6, access_log=0.05, otlp_endpoint="http://d", reflection=True,
        allow_repository_control=True, max_json_bytes=1 << 20,
        max_buffered_bytes=9 << 20, input="image",
        log_format="json", security=security,
    )  # fmt: skip
    assert model == ModelConfig(
        models=models, canary=0.05, versions="all", served_name="i",
        batch=["digits=never"], max_model_bytes=3 << 30, handler=["j.py", "k=l.py"],
        allow_handlers=True, allow_missing=True, max_handler_setup_s=7,
    )  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_ready_line_is_json_where_log_lines_are(models, server, options):
    with started(serve_command(models, *options, "--log-format", "json")) as other:
        facts = json.loads(other.start_line)
    assert facts.pop("message") == "serving"
    assert facts.pop("workers", 1) == len(options) or not options
    assert facts.keys() == server.facts.keys()
    for name in facts.keys() - {"address", "metrics"}:
        assert str(facts[name]) == server.facts[name]


@pytest.mark.parametrize("command", ["serve", "classify", "score", "info", "health"])
def test_help_is_shown(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: digit-serving {command} ")


@pytest.mark.parametrize(
    ("read", "text", "number"),
    [*((values.seconds, *each) for each in (("5ms", 0.005), ("0.5s", 0.5), ("2", 2.0))),
     *((values.share, *each) for each in (("5%", 0.05), ("0.05", 0.05), ("1", 1.0))),
     *((values.seconds, text, None) for text in ("0ms", "ms", "0", "-1", "nan", "inf", "soon")),
     *((values.share, text, None) for text in ("2", "-0.1", "nan", "101%", "much"))],
)  # fmt: skip
def test_values_are_read_with_their_units(read, text, number):
    with nullcontext() if number else pytest.raises(ArgumentTypeError, match="such as 5"):
        assert read(text) == number


def test_help_of_serve_has_groups_and_defaults_of_zero(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    titles = ["models:", "addresses:", "TLS and tokens:", "batching and limits:", "operation:"]
    places = [text.index(f" {title} --") for title in titles]
    assert places == sorted(places)
    assert "batches grow only while it is busy (default: 0)" in text
    assert "such as 500M or 2G (default: 2G)" in text
    assert "640 x 640 x 3 floats (default: 32M)" in text
    assert "--log-level {debug,info,warning,error}" in text


def test_onnx_files_behind_model_are_files(tmp_path):
    for name in ("iris", "cnn"):
        (tmp_path / "models" / name / "1").mkdir(parents=True)
        save(two_layers(), tmp_path / "models" / name / "1")
    save(two_layers(), tmp_path, "net.onnx")
    command = serve_command(tmp_path / "models", "--model", "iris", "net.onnx")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with started(command, cwd=tmp_path, env=environment) as server:
        assert server.facts["model"] == "iris,net"


def test_two_files_of_one_name_are_refused_with_the_remedy(tmp_path, run):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(two_layers(), tmp_path / folder)
    code, _, err = run("serve", tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.onnx")
    assert code == 2
    assert "two models are named model: " in err[-1]
    assert err[-1].endswith("rename one, or put each into a folder of its own below --models")


def test_log_level_drops_lines_below_it(models):
    with started([*serve_command(models), "--log-level", "warning"]) as server:
        server.stop()
        assert server.process.stderr.read() == ""


@pytest.mark.parametrize(
    ("settings", "labels", "version"),
    [
        ("version_policy { specific { versions: [ 1 ] } }", None, "1"),
        ("", {"stable": "2"}, "2"),
        ("", None, "3"),
    ],
)
def test_info_describes_the_version_that_serve_would_serve(
    settings, labels, version, tmp_path, run
):
    for number in "123":
        (tmp_path / "net" / number).mkdir(parents=True)
        save(two_layers(), tmp_path / "net" / number)
    (tmp_path / "net" / "config.pbtxt").write_text(settings)
    if labels:
        (tmp_path / "net" / "labels.json").write_text(json.dumps(labels))
    output = run("info", "--models", tmp_path, "--model", "net", "--json")
    assert json.loads(output.out[0])["version"] == version
    with running_server(tmp_path) as server:
        assert server.facts["version"] == version


@pytest.mark.parametrize("option", [
    "drain", "max-queue-delay", "reload-interval", "self-test-interval", "max-run", "slo",
    "max-connection-age",
])  # fmt: skip
def test_every_duration_is_read_alike(option):
    for text, expected_s in (("5ms", 0.005), ("2s", 2.0), ("0.25", 0.25)):
        parsed = vars(parser({}).parse_args(["serve", f"--{option}", text]))
        assert parsed[f"{option.replace('-', '_')}_s"] == pytest.approx(expected_s)
    with pytest.raises(SystemExit):
        parser({}).parse_args(["serve", f"--{option}", "5 minutes"])

"""Commands without a model: which words they take, what they check first, and their help."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from digit_classifier import PRETRAINED
from serving.__main__ import main
from serving.cli import description, inference, models, serve
from serving.cli.commands import COMMANDS, parser_of
from serving.commandline.fields import add_fields
from serving.commandline.help_texts import Formatter, command_help
from serving.commandline.parser import Parser, unknown_option
from serving.commandline.values import duration
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)
from serving.model.preprocessing import Preprocessing
from serving.tensors import Tensor, TensorSignature
from tests.support.described import INFO

PICTURE = Tensor("p", "BYTES", (-1,), content="picture")
NUMBERS = Tensor("x", "FP32", (-1, 2))
TEXTS = Tensor("text", "BYTES", (-1,))


def test_commands_are_these():
    assert COMMANDS == ("serve", "infer", "info", "optimize", "health")


# infer


def test_values_may_stand_behind_options():
    options = parser_of("infer").parse_args(["infer", "m", "x=1", "--json", "y=2", "-", "--random"])
    assert (options.values, options.json, options.random) == (["x=1", "y=2", "-"], True, True)


@pytest.mark.parametrize(
    ("word", "tensors", "text"),
    [
        ("a", (), "the model has no inputs, got 'a'"),
        ("a", (NUMBERS, TEXTS), "expected NAME=VALUE of x FP32 [N, 2], text BYTES [N], such as "),
        ("y=1", (NUMBERS,), "no input 'y': the model takes x FP32 [N, 2], such as "),
        ("txet=1", (TEXTS, NUMBERS), "no input 'txet': did you mean text? The model takes text "),
    ],
)
def test_word_that_is_for_no_input_is_said(word, tensors, text):
    with pytest.raises(InvalidRequest) as caught:
        inference._input_of(word, {each.name: each for each in tensors})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("word", "tensors", "expected"),
    [
        ("x=1", (NUMBERS, TEXTS), ("x", "1")), ("[1, 2]", (NUMBERS,), ("x", "[1, 2]")),
        ("@a=b", (NUMBERS,), ("x", "@a=b")), ("a = b", (TEXTS,), ("text", "a = b")),
    ],
)  # fmt: skip
def test_word_is_for_an_input(word, tensors, expected):
    assert inference._input_of(word, {each.name: each for each in tensors}) == expected


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (PICTURE, "a.txt is a file: p=@a.txt sends its content"),
        (NUMBERS, "a.txt is a file: x=@a.txt sends its content"),
    ],
)
def test_name_of_a_file_is_not_its_content(tensor, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hi")
    with pytest.raises(InvalidRequest) as caught:
        inference._value(tensor, "a.txt", None)
    assert str(caught.value) == text
    assert inference._value(TEXTS, "a.txt", None) == ["a.txt"]
    line = "digit-serving: a.txt is a file: text=@a.txt sends its content, this its name\n"
    assert capsys.readouterr() == ("", line)


def test_picture_is_a_file():
    with pytest.raises(InvalidRequest) as caught:
        inference._value(PICTURE, "nothing.png", None)
    assert str(caught.value) == ("expected a picture, such as p=@picture.jpg, got 'nothing.png'")


def test_numbers_that_are_none_are_refused():
    for text in ("[[1e999, 2]]", "[[-1e999, 2]]"):
        with pytest.raises(InvalidRequest, match=r"^expected x FP32 \[N, 2\] as JSON"):
            inference._value(NUMBERS, text, None)


@pytest.mark.parametrize("is_json", [True, False])
def test_outputs_are_printed_at_once(is_json, monkeypatch):
    """A reader of a pipe sees each part as it comes."""
    printed: list[Any] = []
    monkeypatch.setattr(
        "builtins.print", lambda *words, **options: printed.append((*words, options))
    )
    options: Any = SimpleNamespace(json=is_json)
    inference._print(options, {"y": np.array([[1.5]], np.float32)}, ())
    text = '{"y": [[1.5]]}' if is_json else "y float32 [1, 1]\n  [[1.5]]"
    assert printed == [(text, {"flush": True})]


def test_likeliest_classes_are_shown_in_their_order_and_long_arrays_are_cut():
    labels = [f"c{each}" for each in range(7)]
    row = np.array([[0.1, 0.25, 0.1, 0.25, 0.1, 0.1, 0.1]], np.float32)
    assert inference._lines({"y": row}, labels) == [
        "y float32 [1, 7]", "  c1 0.25, c3 0.25, c0 0.1, c2 0.1, c4 0.1"]  # fmt: skip
    assert inference._lines({"y": np.arange(65)}, ()) == [
        "y int64 [65]", "  [ 0  1  2  3 ... 61 62 63 64]"]  # fmt: skip
    assert len(inference._lines({"y": np.arange(64)}, ())) > 2
    assert inference._lines({"y": np.array([1 / 3])}, ())[1] == "  [0.333333]"


def test_labels_are_for_an_output_that_they_fit(monkeypatch):
    options: Any = SimpleNamespace(
        input="tensors", labels="l", target=None, around=None, model="m", json=True
    )
    signature = TensorSignature((NUMBERS,), (Tensor("y", "FP32", (-1, 3)),), is_batchable=True)
    model: Any = SimpleNamespace(tensors=signature, sample_shapes={}, labels=(),
                                 run=lambda feeds: [np.zeros((1, 3), np.float32)])  # fmt: skip
    monkeypatch.setattr(inference, "require_here", lambda options: None)
    monkeypatch.setattr(inference, "read_labels", lambda path: ("a", "b"))
    monkeypatch.setattr(inference, "_loaded", lambda options: (model, None))
    monkeypatch.setattr(inference, "_feeds", lambda *_: {})
    with pytest.raises(ConfigurationError) as caught:
        inference.run(options)
    assert str(caught.value) == "--labels: 2 labels fit no output of y [1, 3]"


class Server:
    """The client of a server: notes which version of which model is asked for what."""

    def __init__(self, in_parts):
        signature = TensorSignature((NUMBERS,), (NUMBERS,), is_batchable=True)
        self.info = SimpleNamespace(
            tensors=signature, pictures=None, labels=(), in_parts=in_parts
        )  # fmt: skip
        self.asked: list[Any] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked.append("closed")

    def describe(self, *asked):
        self.asked.append(("describe", *asked))
        return self.info

    def infer(self, name, feeds, version=""):
        self.asked.append(("infer", name, *feeds, version))
        return {"y": np.array([[1.0]])}

    def stream(self, name, feeds, version=""):
        self.asked.append(("stream", name, *feeds, version))
        yield {"y": np.array([[1.0]])}
        yield {"y": np.array([[2.0]])}


@pytest.mark.parametrize("version", ["7", ""])
@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("value", ["x=[1, 2]", "--random"])
def test_server_describes_and_runs_the_version_that_is_named(
    value, in_parts, version, monkeypatch, capsys
):
    server = Server(in_parts)
    monkeypatch.setattr(inference, "client_of", lambda options: server)
    words = ["infer", "m", value, "--target", "h:1", "--json"]
    words += ["--version", version] if version else []
    assert inference.run(parser_of("infer").parse_args(words)) == 0
    method = "stream" if in_parts else "infer"
    assert server.asked == [("describe", "m", version), (method, "m", "x", version), "closed"]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [{"y": [[1.0]]}, {"y": [[2.0]]}][: 1 + in_parts]


@pytest.mark.parametrize("command", ["infer", "info"])
def test_handler_for_a_server_is_refused_before_anything_is_read_or_asked(command, monkeypatch):
    def ask(options):
        raise AssertionError

    monkeypatch.setattr("serving.cli.target.client_of", ask)
    monkeypatch.setattr(inference, "client_of", ask)
    words = [*["m"] * (command == "infer"), "--target", "h:1", "--handler", "a.py"]
    words += ["--labels", "missing.txt"] * (command == "infer")
    options = parser_of(command).parse_args([command, *words])
    with pytest.raises(ConfigurationError, match=r"^--handler is for a model that is loaded here"):
        options.run(options)


BINARY = Tensor("b", "BYTES", (-1,), content="bytes")


def test_description_of_a_servers_pictures_goes_before_the_options(monkeypatch):
    """Also one that this version does not know: then there are none."""
    monkeypatch.setattr(inference, "is_known", lambda document: document != {"kind": "new"})
    monkeypatch.setattr(Preprocessing, "of", lambda document: ("of", document))
    monkeypatch.setattr(inference, "read_labels", lambda path: ())
    options: Any = SimpleNamespace(input="image", labels=None, target="h:1", model="m")
    tensors: Any = "tensors"
    found: Any = inference._pictures_of(options, tensors, {"a": 1})
    assert found == ("of", {"a": 1})
    assert inference._pictures_of(options, tensors, {"kind": "new"}) is None


def test_file_is_an_array_unless_the_input_takes_any_bytes(tmp_path):
    np.save(tmp_path / "row.npy", np.array([[1, 2]], np.float32))
    found = inference._of_file(NUMBERS, f"@{tmp_path / 'row.npy'}", None)
    assert found.tolist() == [[1.0, 2.0]]
    content = (tmp_path / "row.npy").read_bytes()
    assert inference._of_file(BINARY, f"@{tmp_path / 'row.npy'}", None) == content


@pytest.mark.parametrize(
    ("datatype", "zeros", "random"),
    [
        ("BYTES", {"text"}, {"text"}), ("UINT8", {0}, {*range(256)}), ("INT64", {0}, {0, 1}),
        ("BOOL", {False}, {True}),
    ],
)  # fmt: skip
def test_numbers_that_nobody_names_are_such_as_models_take(datatype, zeros, random):
    """Pixels are of any brightness; other whole numbers are rows of a table, or a mask."""
    tensor = Tensor("x", datatype, (-1, 9))
    found = [inference._filled(how, tensor, (999, 9)) for how in ("zeros", "random")]
    assert [{*each.flat} for each in found] == [zeros, random]
    assert [(each.shape, each.dtype) for each in found] == [((999, 9), tensor.dtype)] * 2


def test_inputs_without_a_value_are_all_named():
    signature = TensorSignature((NUMBERS, TEXTS, PICTURE), (), is_batchable=True)
    options: Any = SimpleNamespace(random=False, values=["text=a"])
    with pytest.raises(InvalidRequest) as caught:
        inference._feeds(options, signature, None)
    assert str(caught.value) == (
        "expected a value of x FP32 [N, 2], such as x=[[0.5, 0.5]]; p BYTES [N], such as "
        "p=@picture.jpg"
    )


def test_random_floats_are_from_0_to_1():
    numbers = inference._filled("random", NUMBERS, (999, 2))
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1


# serve


def test_server_has_its_streams_and_one_thread_of_arithmetic_before_it_imports(monkeypatch):
    done: list[Any] = []

    def note(name, answer=None):
        def call(*args):
            done.append((name, *args, os.environ.get("OPENBLAS_NUM_THREADS")))
            return answer

        return call

    for named in (None, "8"):  # an operator's own number stays
        for answer, code in ((True, 0), (False, 1)):
            monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
            if named:
                monkeypatch.setenv("OPENBLAS_NUM_THREADS", named)
            monkeypatch.setattr(serve, "reserve_standard_files", note("reserve"))
            monkeypatch.setattr(serve, "serve_until_stopped", note("serve", answer))
            monkeypatch.setattr("serving.system.signals.end_process", note("end"))
            serve.run("options")
            number = named or "1"
            assert done == [
                ("reserve", number), ("serve", "options", number), ("end", code, number),
            ]  # fmt: skip
            done.clear()


def test_server_starts_in_this_order(monkeypatch):
    """What is missing is said first; what stays is imported without a collector; then it logs."""
    done: Any = []

    def note(name, answer=None):
        return lambda *args: done.append(name) or answer

    collector = SimpleNamespace(disable=note("off"), freeze=note("frozen"), enable=note("on"))
    monkeypatch.setattr(serve, "gc", collector)
    monkeypatch.setattr("serving.commandline.installation.require", note("packages"))
    monkeypatch.setattr(serve, "import_module", note("imports"))
    monkeypatch.setattr("serving.telemetry.logs.setup", lambda *args: done.append(("logs", *args)))
    monkeypatch.setattr(serve, "_ports", lambda options: done.append("ports") or {})
    monkeypatch.setattr("serving.model.picture_inputs.read_labels", lambda path: (path.name,))
    monkeypatch.setattr(serve, "require_descriptors", lambda number: done.append(number))
    monkeypatch.setattr(serve, "_served_models", note("models", ModelConfig(models=Path("m"))))
    monkeypatch.setattr(
        "serving.model.repository.named_models", lambda *args: done.append(("named", *args[1:]))
    )

    def run(model, batching, config):
        done.append(("run", model.models, batching, config.workers, config.labels))
        return True

    monkeypatch.setattr(serve, "_run", run)
    words = ["serve", "--workers", "3", "--input", "image", "--labels", "cat"]
    words += ["--http-port", "off", "--metrics-port", "off"]
    assert serve.serve_until_stopped(parser_of("serve").parse_args(words)) is True
    assert done == [
        "packages", "off", "imports", "frozen", "on", ("logs", "text", "info"), "ports",
        64 + 8 * 3, "models", ("named", Path("m")),
        ("run", Path("m"), BatchingConfig(), 3, ("cat",)),
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_server_that_others_reach_says_so_before_it_starts(workers, monkeypatch):
    done: list[Any] = []

    def note(name):
        def call(*args):
            done.append((name, *args))
            return "begun" if name == "serve" else True

        return call

    async def supervise(*args):
        done.append(("supervise", *args))
        return True

    monkeypatch.setattr(serve, "warn_if_exposed", note("warn"))
    monkeypatch.setattr("serving.server.lifetime.serve", note("serve"))
    monkeypatch.setattr("serving.server.lifetime.run_loop", note("run"))
    monkeypatch.setattr("serving.server.supervisor.supervise", supervise)
    config = ServerConfig(workers=workers, reload_interval_s=5.0)
    configs = ModelConfig(), BatchingConfig(), config
    assert serve._run(*configs) is True
    one = [("serve", *configs), ("run", "begun", "auto")]
    assert done == [("warn", config), *(one if workers == 1 else [("supervise", *configs)])]
    done.clear()
    with pytest.raises(ConfigurationError, match=r"^reload_interval replaces versions, and"):
        serve._run(ModelConfig(version="1"), BatchingConfig(), config)
    assert done == []


@pytest.mark.parametrize(
    ("place", "option"),
    [("127.0.0.1:1", "--port"), ("127.0.0.2:2", "--http-port"), ("127.0.0.3:3", "--metrics-port"),
     ("127.0.0.1:9", None)],
)  # fmt: skip
def test_port_that_is_taken_is_chosen_by_its_option(place, option):
    config = ServerConfig(
        host="127.0.0.1", port=1, http_host="127.0.0.2", http_port=2, metrics_host="127.0.0.3",
        metrics_port=3,
    )  # fmt: skip
    found = serve._other_port(config, f"can't listen on {place}: the port is taken")
    assert found == (f"; choose another by {option}" if option else "")


# Help


def test_help_of_an_option_is_the_text_of_its_field(monkeypatch):
    """Also of one that is off by default, of which no default is shown."""
    monkeypatch.setenv("COLUMNS", "1000")
    parser = Parser(prog="program", formatter_class=Formatter)
    add_fields(parser, ServerConfig, "otlp_endpoint", "reflection", "drain_s", "http_port",
               "max_json_bytes", "usual_ports")  # fmt: skip
    text = " ".join(parser.format_help().split())
    for part in (
        "--otlp-endpoint ENDPOINT OpenTelemetry collector that gets a span for each call, such as "
        "http://127.0.0.1:4317 (extra otel)",
        "--reflection list services and messages to callers such as grpcurl",
        "--drain TIME seconds for accepted requests to finish after SIGTERM or Ctrl-C (default: "
        "30)",
        "--max-json-bytes SIZE",
        "640 x 640 x 3 floats (default: 32M)",
        "--http-port PORT TCP port of HTTP",
        "(default: auto)",
        "--usual-port PORT [PORT ...]",
    ):
        assert part in text
    assert "%" not in text


def test_shortest_option_that_begins_so_was_meant():
    options = ["--max-batch-size", "--max-run", "--model", "--models"]
    assert unknown_option("--max", options) == "unknown option --max: did you mean --max-run?"
    assert unknown_option("--mo", options) == "unknown option --mo: did you mean --model?"
    assert unknown_option("--xyz", options) == "unknown option --xyz"


# The end of a command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0), (ConfigurationError("why"), 2), (CorruptModel("why"), 2),
        (DeviceError("why"), 2), (ModelNotFound("why"), 2), (InvalidRequest("why"), 1),
        (Unavailable("why"), 1), (OSError("why"), 1), (KeyboardInterrupt(), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_exit_code_says_whether_trying_again_can_help(error, code, monkeypatch, capsys):
    def run(options):
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr("serving.cli.info.run", run)
    assert main(["info"]) == code
    is_said = error is not None and str(error)
    assert capsys.readouterr().err == ("digit-serving: why\n" if is_said else "")


def test_variables_that_are_no_options_are_known(monkeypatch, capsys):
    monkeypatch.setattr("serving.cli.info.run", lambda options: 0)
    for name in ("SERVING_TOKEN", "SERVING_VERDICTS", "SERVING_WORKERS", "SERVING_UNKNOWN"):
        monkeypatch.setenv(name, "1")
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "digit-serving: unknown variable SERVING_UNKNOWN: ignored\n"


# Models that are loaded here


@pytest.mark.parametrize(("is_image", "path"), [(True, None), (False, "net.onnx")])
def test_model_is_loaded_with_how_its_pictures_are_read(is_image, path, monkeypatch):
    made: list[Any] = []

    class Inputs:
        def __init__(self, *, is_image, labels):
            self.is_image, self.labels = is_image, labels

        def of(self, model):
            return self.is_image, self.labels, model

    def load(*facts, **options):
        made.append((facts, options))
        return "model"

    monkeypatch.setattr("serving.model.picture_inputs.PictureInputs", Inputs)
    monkeypatch.setattr("serving.model.picture_inputs.read_labels", lambda path: (path,) * is_image)
    monkeypatch.setattr("serving.model.loading.load_model", load)
    monkeypatch.setattr("serving.model.repository.find", lambda root, name: root / name)
    options: Any = SimpleNamespace(input="image" if is_image else "tensors", labels="l")
    config = ModelConfig(models=Path("m"), model="net", version="3", device="cpu", precision="int8")
    found: Any = models.load_with_pictures(options, config, None if path is None else Path(path))
    assert found == ("model", (is_image, ("l",) * is_image, "model"))
    place = Path("m/net") if path is None else Path(path)
    assert made == [((place, "3", "cpu", "int8"), {"tries_file": True})]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("net.py", {"names": ()}), ("net.onnx", {"names": (), "files": (Path("net.onnx"),)}),
        ("a/net", {"models": Path("a"), "names": ("net",)}),
    ],
)  # fmt: skip
def test_model_is_described_as_a_server_would_load_it(path, expected, monkeypatch):
    made: list[Any] = []
    info = replace(INFO, name="own", not_served={})

    class Catalog:
        def __init__(self, *facts):
            made.append(facts)
            model = SimpleNamespace(describe=lambda batching: info)
            self.models = {"net": SimpleNamespace(default=model, reasons={"4": "corrupt"})}

    monkeypatch.setattr("serving.versions.catalog.Catalog", Catalog)
    config = ModelConfig(names=("x",), threads=1)
    facts = description.of_files(Path(path), config)
    assert made == [(replace(config, **expected), 512)]
    assert facts == description.facts_of(replace(info, name="net", not_served={"4": "corrupt"}))


@pytest.mark.parametrize(
    ("file", "handler", "expected"),
    [(None, None, ()), (Path("a.onnx"), None, ()), (Path("a.onnx"), "h.py", ("h.py",)),
     (Path("a.py"), None, ("a.py",)), (None, "h.py", ("h.py",))],
)  # fmt: skip
def test_handler_is_an_option_or_the_file_itself(file, handler, expected):
    config = description.with_handler(ModelConfig(threads=3), file, handler)
    assert config == ModelConfig(threads=3, handler=expected)


# Which ports and models a server has


@pytest.mark.parametrize(
    ("words", "has_package", "expected"),
    [
        ((), True, {"http_port": 8080, "metrics_port": 9090,
                    "usual_ports": ("http_port", "metrics_port")}),
        ((), False, {"http_port": None, "metrics_port": 9090, "usual_ports": ("metrics_port",)}),
        (("--http-port", "off", "--metrics-port", "off"), False,
         {"http_port": None, "metrics_port": None, "usual_ports": ()}),
        (("--http-port", "1", "--metrics-port", "2"), True,
         {"http_port": 1, "metrics_port": 2, "usual_ports": ()}),
        (("--http-port", "1"), True,
         {"http_port": 1, "metrics_port": 9090, "usual_ports": ("metrics_port",)}),
    ],
    ids=["auto", "auto without its package", "off", "named", "one named"],
)  # fmt: skip
def test_ports_are_the_usual_ones_unless_they_are_named(words, has_package, expected, monkeypatch):
    monkeypatch.delenv("SERVING_HTTP_PORT", raising=False)
    monkeypatch.setattr(serve, "find_spec", lambda name: "it" if has_package else None)
    options = parser_of("serve").parse_args(["serve", *words])
    assert serve._ports(options) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"models": Path("usual")}),
        (("a.onnx",), {"names": (), "files": (Path("a.onnx"),)}),
        (("--handler", "h.py"), {"names": (), "handler": ["h.py"]}),
        (("--models", "m"), {"models": Path("m")}),
        (("--models", "m", "--model", "a,b", "c.onnx"),
         {"models": Path("m"), "names": ("a", "b"), "files": (Path("c.onnx"),)}),
        (("--model", "a"), {"models": Path("usual a"), "names": ("a",)}),
        (("--models", "memory://it"), {"models": "memory://it", "url": "memory://it"}),
    ],
)  # fmt: skip
def test_models_are_those_of_the_words(words, expected, monkeypatch):
    monkeypatch.setattr(
        "serving.cli.models.usual_models", lambda *names: Path(" ".join(["usual", *names]))
    )
    monkeypatch.setattr("serving.model.repository.models_in", lambda root: {})
    monkeypatch.setattr("serving.commandline.installation.require", lambda *names: None)
    options = parser_of("serve").parse_args(["serve", *words])
    found = serve._served_models(options)
    parsed: Any = {"batch": [], "handler": []} | expected
    assert found == ModelConfig(**parsed)


def test_options_are_as_their_fields_say():
    parser = Parser(prog="program")
    names = "log_level", "workers", "otlp_endpoint", "usual_ports", "drain_s", "reflection"
    add_fields(parser, ServerConfig, *names)
    add_fields(parser, SecurityConfig, "tls_cert")
    add_fields(parser, BatchingConfig, "max_queue_delay_s")
    found = {
        each.dest: (each.type, each.default, each.metavar, each.choices, each.nargs)
        for each in parser._actions
        if each.dest in (*names, "tls_cert") and not each.option_strings[0].startswith("--no-")
    }
    levels = ("debug", "info", "warning", "error")
    assert found == {
        "log_level": (None, "info", None, levels, None),
        "workers": (int, 1, "N", None, None),
        "otlp_endpoint": (str, None, "ENDPOINT", None, None),
        "usual_ports": (None, [], "PORT", None, "+"),
        "drain_s": (duration, 30.0, "TIME", None, None),
        "reflection": (None, False, None, None, 0),
        "tls_cert": (Path, None, "FILE", None, None),
    }


@pytest.mark.parametrize(
    ("kind", "metavar"), [(float, "SECONDS"), (int, "N"), (Path, "FILE"), (str, "WORD")]
)
def test_value_is_shown_by_its_kind(kind, metavar):
    @dataclass
    class Config:
        some_word: Any = None

    Config.__dataclass_fields__["some_word"].type = kind
    parser = Parser(prog="program")
    add_fields(parser, Config, "some_word")
    (action,) = [each for each in parser._actions if each.dest == "some_word"]
    assert (action.type, action.metavar) == (kind, metavar)


def test_help_of_a_command_is_whole():
    assert command_help("do it", "  a b\n") == {
        "help": "do it", "description": "Do it.", "epilog": "examples:\n  a b\n",
        "formatter_class": Formatter,
    }  # fmt: skip
    assert command_help("do it")["epilog"] == ""


def test_labels_are_for_pictures_of_a_servers_model(monkeypatch):
    given: list[Any] = []
    monkeypatch.setattr(inference, "read_labels", lambda path: ("a", "b"))
    monkeypatch.setattr(inference, "of_graph", lambda *facts: given.append(facts))
    options: Any = SimpleNamespace(input="image", labels="l", target="h:1", model="m")
    tensors: Any = "tensors"
    inference._pictures_of(options, tensors, None)
    assert given == [("tensors", {"labels": ("a", "b")})]


def test_own_models_are_served_before_the_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = ModelConfig().models
    assert models.usual_models() == models.usual_models("digits") == PRETRAINED
    (usual / "other" / "1").mkdir(parents=True)
    (usual / "other" / "1" / "model.onnx").write_bytes(b"graph")
    assert models.usual_models() == models.usual_models("other") == usual
    assert models.usual_models("digits") == PRETRAINED

"""`infer`: any model, here or of a server, on values, files and pictures."""

import io
import json
import socket
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import helper
from PIL import Image

from serving.__main__ import main
from serving.oip import inference_pb
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.serving.test_picture_classifiers import COLOURS, IMAGE, colours
from tests.support.certificates import self_signed
from tests.support.servers import ended, fake_service, serve_command, started

ROOT = Path(__file__).parents[3]
ROW = "[1, 2, 3, 4]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("infer")
    save(two_layers(), folder, "iris.onnx")
    texts = [value("text", "BYTES", ["N", 1])], [value("same", "BYTES", ["N", 1])]
    save(model([node("Identity", ["text"], ["same"])], *texts), folder, "texts.onnx")
    two = [value(name, "FP32", ["N", 2]) for name in ("left", "right")]
    total = model([node("Add", ["left", "right"], ["sum"])], two, [value("sum", "FP32", ["N", 2])])
    save(total, folder, "towers.onnx")
    (folder / "colours.onnx").write_bytes(colours())
    (folder / "labels.txt").write_text("\n".join(COLOURS))
    Image.new("RGB", (60, 40), (20, 200, 30)).save(folder / "green.png")
    np.save(folder / "row.npy", np.array([1, 2, 3, 4], np.float32))
    nothing = model([node("Constant", [], ["y"], value_float=1.0)], [], [value("y", "FP32", [])])
    save(nothing, folder, "constant.onnx")
    np.save(folder / "pickle.npy", np.array([print], object))
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}\n"
    for name, text in (("huge", header), ("odd", "{[]: 1}\n")):
        size = len(text).to_bytes(2, "little")
        (folder / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + text.encode())
    return folder


@pytest.fixture(scope="module")
def running(folder):
    names = ("iris", "texts", "towers")
    files = [str(folder / f"{name}.onnx") for name in names]
    with started(serve_command(None, *files)) as server:
        yield server


@pytest.mark.parametrize("place", ["here", "a server"])
def test_inputs_are_filled_without_a_file(place, folder, running, run):
    target = ["--target", running.address, "--json"] if place == "a server" else ["--json"]

    def asked(name, *values):
        where = name if place == "a server" else str(folder / f"{name}.onnx")
        code, out, err = run("infer", where, *target, *values)
        return json.loads(out[0]) if code == 0 else err[0]

    assert asked("towers", "left=zeros", "right=[1, 2]") == {"sum": [[1.0, 2.0]]}
    assert asked("towers", "left=zeros[3,2]", "right=zeros[3, 2]") == {"sum": [[0.0, 0.0]] * 3}
    (row,) = asked("towers", "--random")["sum"]
    assert all(0 < each < 2 for each in row)
    assert asked("towers", "--random", "left=zeros", "right=zeros") == {"sum": [[0.0, 0.0]]}
    assert asked("texts", "--random") == {"same": [["text"]]}
    assert asked("texts", "zeros") == {"same": [["zeros"]]}  # it is a text
    assert "expected left FP32 [N, 2], got the shape [1, 3]" in asked(
        "towers", "--random", "left=zeros[3]"
    )
    assert "no room for an array" in asked("towers", "left=zeros[999999999,999999999]", "--random")


@pytest.mark.parametrize("name", ["towers", "texts", "colours", "iris"])
def test_line_to_try_runs_as_pasted(name, folder, tmp_path):
    """In an empty shell: it names no file but those of the server's own options."""
    options = []
    if name == "iris":
        pytest.importorskip("cryptography")
        own, token = str(self_signed(tmp_path, "localhost")), tmp_path / "token"
        token.write_text("a-token-that-is-long-enough-to-be-one\n")
        options = ["--host", "0.0.0.0", "--tls-cert", own, "--tls-key", own]
        options += ["--token-file", str(token)]
    with started(serve_command(None, str(folder / f"{name}.onnx"), *options)) as server:
        line = server.process.stdout.readline().removeprefix("try it: ")
        code = f"cd /; {line.replace('digit-serving', f'{sys.executable} -m serving', 1)}"
        result = ended(["bash", "-c", code], env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert result.returncode == 0, (line, result.stderr)
    assert result.stdout


@pytest.mark.parametrize("place", ["here", "a server"])
def test_same_answers_of_values_files_and_stdin(place, folder, running, run, monkeypatch):
    target = ["--target", running.address, "--json"] if place == "a server" else ["--json"]

    def asked(name, *values):
        where = name if place == "a server" else str(folder / f"{name}.onnx")
        code, out, err = run("infer", where, *target, *values)
        assert (code, err) == (0, [])
        return json.loads(out[0])

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[[1, 2, 3, 4]]")))
    words = f"x={ROW}", f"x=[{ROW}]", ROW, f"@{folder / 'row.npy'}", f"x=@{folder / 'row.npy'}", "-"
    answers = [asked("iris", each) for each in words]
    assert all(each == answers[0] for each in answers)
    assert asked("texts", "text=a = b, c") == {"same": [["a = b, c"]]}
    assert asked("texts", "a = b") == {"same": [["a = b"]]}
    assert asked("towers", "left=[1, 2]", "right=[3, 4]") == {"sum": [[4.0, 6.0]]}


def test_pictures_have_their_classes(folder, run):
    options = [*IMAGE, folder / "labels.txt", f"@{folder / 'green.png'}"]
    code, out, _ = run("infer", folder / "colours.onnx", *options)
    assert code == 0
    assert out[1].split()[0] == "green"


def test_picture_goes_to_a_server_as_its_classifier_wants_it(server, run):
    seven = Path(__file__).parents[3] / "docs" / "pictures" / "seven.png"
    code, out, _ = run("infer", "digits", "--target", server.address, f"@{seven}")
    assert code == 0
    assert out[1].split()[0] == "7"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["iris.onnx"], "expected a value of x FP32 [N, 4], such as x=[[0.5, 0.5, 0.5, 0.5]]"),
        (
            ["iris.onnx", "y=3"],
            "no input 'y': the model takes x FP32 [N, 4], such as x=[[0.5, 0.5,",
        ),
        (
            ["towers.onnx", "lefft=[1, 2]", "right=[1, 2]"],
            "no input 'lefft': did you mean left? The model takes left FP32 [N, 2], right FP32 [N, "
            "2], such as left=[[0.5, 0.5]] right=[[0.5, 0.5]]",
        ),
        (["towers.onnx", "[1, 2]"], "expected NAME=VALUE of left FP32 [N, 2], right FP32 [N, 2],"),
        (["texts.onnx", "txet=a film"], "no input 'txet': did you mean text? The model takes text"),
        (["towers.onnx", "left=[1, 2]", "left=[3, 4]"], "input left: two values, [1, 2] and [3,"),
        (["iris.onnx", ROW, f"x={ROW}"], "input x: two values"),
        (["iris.onnx", "x=row.npy"], "row.npy is a file: x=@row.npy sends its content"),
        (["iris.onnx", "row.npy"], "row.npy is a file: x=@row.npy sends its content"),
        (["iris.onnx", "x=abc"], "expected x FP32 [N, 4] as JSON, such as x=[[0.5,"),
        (["iris.onnx", "x=[1]"], "expected x FP32 [N, 4], got the shape [1, 1]"),
        (["iris.onnx", "x=@nothing.npy"], "@nothing.npy: No such file or directory"),
        (["iris.onnx", "x=@/dev/zero"], "@/dev/zero: not a regular file"),
        (["iris.onnx", "x=@green.png"], "pictures are for models with a classifier.json"),
        (["iris.onnx", "x=[[1], [2, 3]]"], "expected x FP32 [N, 4], got '[[1], [2, 3]]': "),
        (["iris.onnx", "x=@huge.npy"], "@huge.npy: Unable to allocate"),
        (["iris.onnx", "x=@odd.npy"], "@odd.npy: unhashable type"),
        (["iris.onnx", "x=@pickle.npy"], "@pickle.npy: Object arrays cannot be loaded"),
        (["constant.onnx", "x=1"], "the model has no inputs, got 'x=1'"),
        (["towers.onnx", "left=[1, 2]"], "expected a value of right FP32 [N, 2]"),
        (["nothing.onnx", "1"], "there is no file nothing.onnx"),
    ],
)
def test_wrong_words_are_one_line_with_an_example(words, reason, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = run("infer", *words)
    assert code != 0
    assert len(err) == 1
    assert reason in err[0]


def test_numbers_and_texts_may_have_names_of_files(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / ROW).write_text("[5, 6, 7, 8]")
    assert run("infer", "iris.onnx", ROW).err == []
    code, out, err = run("infer", "texts.onnx", "labels.txt", "--json")
    assert (code, json.loads(out[0])) == (0, {"same": [["labels.txt"]]})
    sends = "labels.txt is a file: text=@labels.txt sends its content, this its name"
    assert err == [f"digit-serving: {sends}"]


HANDLERS = """\
import serving

class Around(serving.Handler):
    inputs = {"text": serving.Text()}

    def preprocess(self, text):
        return [[len(each)] * 4 for each in text]
"""


@pytest.mark.parametrize("command", [("infer", "m", "x=1"), ("info",), ("classify", "a.png")])
def test_calls_of_commands_have_a_time_limit(command, run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        seven = str(ROOT / "docs" / "pictures" / "seven.png")
        words = [seven if word == "a.png" else word for word in command]
        code, _, err = run(*words, "--target", target, "--timeout", "50ms")
    assert code == 1
    assert len(err) == 1


def test_handler_is_named_as_for_serve(folder, run, tmp_path):
    (tmp_path / "around.py").write_text(HANDLERS)
    file, network = tmp_path / "around.py", folder / "iris.onnx"
    words = ["text=ab", "--json"]
    answers = [
        run("infer", network, "--handler", each, *words)
        for each in (file, f"{file}:Around", f"iris={file}", f"iris={file}:Around")
    ]
    assert answers[0].code == 0
    assert all(each == answers[0] for each in answers)
    named = run("info", network, "--handler", f"iris={file}", "--json")
    assert json.loads(named.out[0])["inputs"] == ["text BYTES [N]"]
    wrong = run("infer", network, "--handler", f"irs={file}", *words)
    assert (wrong.code, wrong.err) == (2, ["digit-serving: handler irs: the model is named iris"])
    for command in ("infer", "info"):
        model = ["m"] if command == "infer" else []
        code, _, err = run(command, *model, "--target", "127.0.0.1:1", "--handler", file)
        assert (code, len(err)) == (2, 1)
        assert "--handler is for a model that is loaded here" in err[0]


def test_handler_is_around_a_model_of_the_repository_too(folder, run, tmp_path):
    """Which is named, not its file."""
    (tmp_path / "around.py").write_text(HANDLERS)
    asked = ("--handler", tmp_path / "around.py", "text=ab", "--json")
    expected = run("infer", folder / "iris.onnx", *asked)
    assert expected.code == 0
    assert run("infer", "iris", "--models", folder, *asked) == expected
    missing = run("infer", "none", "--models", folder, *asked)
    assert (missing.code, missing.out, len(missing.err)) == (2, [], 1)
    assert f"no model in {folder}/none" in missing.err[0]
    wrong = run("infer", tmp_path / "around.py", *asked)
    assert (wrong.code, wrong.err) == (2, [
        f"digit-serving: handler: {tmp_path / 'around.py'} is one itself, and runs without another"
    ])  # fmt: skip


def test_picture_is_a_file(run, tmp_path):
    (tmp_path / "size.py").write_text(
        "import serving\n\nclass Size(serving.Handler):\n"
        "    inputs = {'picture': serving.Picture()}\n"
        "    outputs = {'height': serving.Array('int64')}\n\n"
        "    def predict(self, picture):\n        return [len(each) for each in picture]\n"
    )
    seven = ROOT / "docs" / "pictures" / "seven.png"
    asked = ("infer", tmp_path / "size.py")
    assert json.loads(run(*asked, f"@{seven}", "--json").out[0]) == {"height": [370]}
    reasons = [run(*asked, each).err[0] for each in (seven, "nothing.png")]
    assert reasons == [
        f"digit-serving: {seven} is a file: picture=@{seven} sends its content",
        "digit-serving: expected a picture, such as picture=@picture.jpg, got 'nothing.png'",
    ]


ESCAPES = "\x1b]0;title\x07\x1b[2J\n"
"""Sequences of a terminal: the title of its window, and an empty screen."""


class Hostile:
    """A server's answers: any text for the terminal, and a configuration of wrong types."""

    def __init__(self):
        self.config = {}
        self.name = "x"
        self.address = ""

    def methods(self):
        return {"ModelMetadata": self.metadata, "ModelConfig": self.configuration,
                "ModelInfer": self.infer, "RepositoryIndex": self.index}  # fmt: skip

    def metadata(self, *_):
        inputs = [{"name": self.name, "datatype": "FP32", "shape": [-1, 4]}]
        return inference_pb.ModelMetadataResponse(inputs=inputs).SerializeToString()

    def configuration(self, *_):
        response = inference_pb.ModelConfigResponse()
        for name, text in self.config.items():
            response.config.parameters[name].string_value = text
        return response.SerializeToString()

    def infer(self, _, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, ESCAPES)

    def index(self, *_):
        models = [{"name": f"m{ESCAPES}", "state": "READY"}]
        return inference_pb.RepositoryIndexResponse(models=models).SerializeToString()


@pytest.fixture(scope="module")
def hostile():
    hostile = Hostile()
    with fake_service(inference_pb.SERVICE, hostile.methods()) as hostile.address:
        yield hostile


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("x", {}),
        (f"x{ESCAPES}", {}),
        ("x", {"batching": ESCAPES, "device": ESCAPES}),
        ("x", {"labels": "5"}),
        ("x", {"labels": "[1, null]"}),
        ("x", {"axes": "[]"}),
        ("x", {"axes": '{"x": 5}'}),
        ("x", {"axes": "[" * 100_000}),
        ("x", {"pictures": "null"}),
        ("x", {"pictures": f'{{"a": 1, "labels": [{json.dumps(ESCAPES)}]}}'}),
        ("x", {"pictures": '{"size": "ab", "channels": {}}'}),
    ],
)
def test_hostile_server_writes_no_codes_to_the_terminal_and_is_one_line(name, config, hostile, run):
    hostile.name, hostile.config = name, config
    code, out, err = run("infer", "m", "--target", hostile.address, "x=[1, 2, 3, 4]")
    assert (code > 0, out, len(err)) == (True, [], 1)
    _, described, refused = run("info", "--target", hostile.address)
    assert all(line.isprintable() for line in (*err, *described, *refused))


def test_info_of_one_model_of_a_server(running, run):
    code, out, _ = run("info", "--target", running.address, "--model", "towers")
    assert code == 0
    assert "inputs              left FP32 [N, 2], right FP32 [N, 2]" in out
    assert any("batching            batching on: row independence proved" in line for line in out)
    assert not any("iris" in line for line in out)
    code, _, err = run("info", "--target", running.address, "--model", "nothing")
    assert code == 2
    assert "no model 'nothing': this server serves 'iris', 'texts', 'towers'" in err[0]


def test_program_alone_prints_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "run any model on values" in capsys.readouterr().out


def test_classes_of_a_map_of_probabilities_are_shown(tmp_path, run):
    probabilities = node("Softmax", ["x"], ["p"], axis=1)
    labels = ["setosa", "versicolor"]
    zip_map = node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_strings=labels)
    kind = helper.make_map_type_proto(8, helper.make_tensor_type_proto(1, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    graph = model([probabilities, zip_map], [value("x", "FP32", ["N", 2])], [output])
    graph.opset_import.add(domain="ai.onnx.ml", version=1)
    path = save(graph, tmp_path, "iris.onnx")
    assert "labels              setosa, versicolor" in run("info", path).out
    assert run("infer", path, "x=[2, 1]").out[1].startswith("  setosa 0.73")
    with started(serve_command(None, str(path))) as server:
        code, out, _ = run("info", "--target", server.address, "--json")
        asked = run("infer", "iris", "--target", server.address, "x=[2, 1]")
    assert (code, json.loads(out[0])["labels"]) == (0, labels)
    assert asked.out[1].startswith("  setosa 0.73")


@pytest.mark.parametrize("number", ["1e39", "-1e300", "1e400"])
def test_number_that_the_input_cannot_hold_is_refused_here_and_by_a_server(
    number, folder, running, run
):
    values = f"x=[1, {number}, 3, 4]"
    for where in ((str(folder / "iris.onnx"),), ("iris", "--target", running.address)):
        code, out, (line,) = run("infer", *where, values)
        assert (code, out) == (1, [])
        assert "expected x FP32" in line
    assert run("infer", str(folder / "iris.onnx"), "x=[1, 1e38, 3, Infinity]").code == 0


def test_labels_name_the_classes_of_a_model_of_numbers_here_and_of_a_server(
    folder, running, run, tmp_path
):
    (tmp_path / "labels.txt").write_text("cheap\nfair\ndear\n")
    labels = ("--labels", tmp_path / "labels.txt")
    for where in ((folder / "iris.onnx",), ("iris", "--target", running.address)):
        code, out, _ = run("infer", *where, f"x={ROW}", *labels)
        assert code == 0
        assert {word for word in ("cheap", "fair", "dear") if word in "".join(out)} == {
            "cheap", "fair", "dear",
        }  # fmt: skip
    (tmp_path / "labels.txt").write_text("cheap\n")
    code, out, (line,) = run("infer", folder / "iris.onnx", f"x={ROW}", *labels)
    assert (code, out) == (2, [])
    assert "1 labels fit no output of y [1, 3]" in line

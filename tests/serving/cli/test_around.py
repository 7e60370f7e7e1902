"""A handler that is loaded here: which model it is around."""

from types import SimpleNamespace

import pytest

from serving.cli import inference
from serving.cli.commands import parser_of
from serving.errors import ConfigurationError

HANDLER = """
import serving


class Around(serving.Handler):
    inputs = outputs = {"text": serving.Text()}

    def predict(self, text):
        return text
"""


@pytest.fixture
def around(monkeypatch, tmp_path):
    """What a model is loaded of, by the words of a command; beside it are net/1 and around.py."""
    loaded = []
    model = SimpleNamespace(load=lambda *given, **more: loaded.append((given, more)))
    monkeypatch.setattr("serving.embedded.Model", model)
    monkeypatch.setattr("serving.commandline.installation.require", lambda *_: None)
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(b"")
    (tmp_path / "around.py").write_text(HANDLER)
    monkeypatch.chdir(tmp_path)

    def asked(*words):
        inference._around(parser_of("infer").parse_args(["infer", *words]))
        return loaded.pop()

    return asked


@pytest.mark.parametrize(("named", "number"), [("net", None), ("./net", None), ("net", "1")])
def test_model_is_a_path_or_one_of_the_repository(named, number, around, tmp_path):
    version = () if number is None else ("--version", number)
    facts = (number, "auto", "fp32")
    handler = {"handler": str(tmp_path / "around.py")}
    (path, *found), more = around(named, "--handler", "around.py", *version)
    assert (path.resolve(), tuple(found), more) == (tmp_path / "net", facts, handler)
    (tmp_path / "net").rename(tmp_path / "moved")
    (tmp_path / "models").mkdir()
    (tmp_path / "moved").rename(tmp_path / "models" / "net")
    options = ("--handler", "around.py", "--models", "models")
    (path, *found), more = around("net", *options, *version)
    assert (path.resolve(), tuple(found), more) == (tmp_path / "models" / "net", facts, handler)


def test_handler_alone_is_around_nothing(around, tmp_path):
    assert around("around.py") == ((), {"handler": type(tmp_path)("around.py")})
    with pytest.raises(ConfigurationError) as caught:
        around("around.py", "--handler", "around.py")
    assert str(caught.value) == "handler: around.py is one itself, and runs without another"

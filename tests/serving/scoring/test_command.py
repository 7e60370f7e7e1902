"""The output of `score` beside its results."""

import sys

import pytest

from serving.commandline.installation import Bar, install
from tests.serving.scoring.conftest import rows_of, write
from tests.support.servers import ended


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [("pyarrow", [], "score"), ("ray", ["--ray"], "ray"), ("onnxruntime", [], "serve")],
)
def test_missing_package_is_one_line(module, options, extra):
    code = f"import sys\nsys.modules[{module!r}] = None\n"
    code += f"from serving.__main__ import main\nsys.exit(main(['score', 'a', *{options!r}]))"
    command = [sys.executable, "-c", code]
    environment = {"SERVING_OUTPUT": "b", "SERVING_MODEL": "digits"}
    result = ended(command, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    line = f"digit-serving: {module} is not installed: {install(extra)}\n"
    assert result.stderr.endswith(line)


def test_progress_is_lines_where_there_is_no_terminal(tmp_path, images, score, monkeypatch):
    monkeypatch.setattr(Bar, "LINE_INTERVAL_S", 0)
    result = score(write(tmp_path, rows_of(images), row_group_size=250), "--rows-per-file", 250)
    first, last = result.err.splitlines()
    assert first.startswith("scored 250 of 500 rows, ")
    assert last.startswith("scored 500 of 500 rows, ")

"""The curl lines of docs/http.md, run as they stand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def lines_of(page):
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    return re.findall(r"(?m)^ {4}(curl .*)$", text)


LINES = lines_of("docs/http.md")


@pytest.fixture
def folder(tmp_path):
    """The files that the lines name."""
    seven = ROOT / "docs" / "pictures" / "seven.png"
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    shutil.copy(seven, tmp_path / "docs" / "pictures" / "seven.png")
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", LINES)
def test_curl_line_is_answered(line, http, folder):
    whole = line.replace("http://127.0.0.1:8080", http.url)
    assert http.url in whole
    command = ["bash", "-c", whole.replace("curl ", "curl --fail --silent --show-error ", 1)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    if "picture=@" in line:
        assert answer["digits"][0]["digit"] == 7


def test_curl_lines_are_found():
    assert len(LINES) >= 6

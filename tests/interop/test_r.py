"""The page on R, run by R: its calls, a picture, a plot, and what it says of wrong requests."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import serving

ROOT = Path(__file__).parents[2]

PAGE = (ROOT / "docs" / "r.md").read_text("utf-8")
BLOCKS = re.findall(r"(?s)```r\n(.*?)```", PAGE)


@pytest.fixture(scope="module")
def served():
    """The bundled digits."""
    with serving.Server(models=ROOT / "digit_classifier" / "pretrained") as server:
        yield f"http://{server.http_address}"


def run_r(code, folder):
    if shutil.which("Rscript") is None:
        pytest.skip("needs R: apt-get install r-base-core r-cran-httr2 r-cran-jsonlite")
    script = folder / "page.R"
    script.write_text(code, "utf-8")
    command = ["Rscript", "--vanilla", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_page_runs_as_it_stands(served, tmp_path):
    shutil.copytree(ROOT / "docs" / "pictures", tmp_path / "docs" / "pictures")
    result = run_r("\n".join(BLOCKS).replace("http://127.0.0.1:8080", served), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["a 1 ", "a 7 with probability 1 "]
    assert (tmp_path / "digit.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_request_is_an_error_in_the_servers_words(served, tmp_path):
    code = f"{BLOCKS[0]}\npredict_digits(matrix(0L, 1, 3))"
    result = run_r(code.replace("http://127.0.0.1:8080", served), tmp_path)
    assert result.returncode == 1
    (words,) = re.findall(r"server's\s+words\s+\(\"(.*?)\"\)", PAGE, re.DOTALL)
    assert " ".join(words.split()) in result.stderr

"""Ten seconds of coverage-guided fuzzing a parser: enough to notice; FUZZ_S=600 to search."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.fuzz.targets import TARGETS
from tests.support.pictures.random_pictures import read_all

ROOT = Path(__file__).parents[3]
FUZZ_S = int(os.environ.get("FUZZ_S", "10"))


@pytest.mark.timeout(FUZZ_S + 120)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_finds_no_bug(target, tmp_path):
    pytest.importorskip("atheris", reason="atheris has wheels for Linux, Python 3.11 and later")
    flags = [f"-max_total_time={FUZZ_S}", f"-seed={SEED}", "-timeout=5", "-rss_limit_mb=2048"]
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *flags],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=FUZZ_S + 60,
    )  # fmt: skip
    print(result.stderr.splitlines()[-1:])
    assert result.returncode == 0, result.stderr[-4000:]


# Pictures of every format, mode, size and damage: an image or InvalidRequest, each


STEP = 1000
NUM_PICTURES = int(os.environ.get("PICTURES", "2000"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, NUM_PICTURES, STEP))
def test_random_pictures_are_read_or_refused(first):
    print(dict(read_all(range(first, first + STEP))))

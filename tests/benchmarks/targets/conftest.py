"""Programs and models for targets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load.cores import split_cores
from benchmarks.load.network import Generator
from benchmarks.run import runner
from benchmarks.targets.target import Setting


@pytest.fixture(scope="package")
def setting(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    cores, generator_cores = split_cores()
    nothing_trained = tmp_path_factory.mktemp("artifacts")
    with Generator(generator_cores[:1], "python") as generator:
        images, answers = runner.golden(models)
        yield Setting(
            models=models, artifacts=nothing_trained, images=images, answers=answers, cores=cores,
            addresses={}, checkouts={}, generator=generator,
        )  # fmt: skip

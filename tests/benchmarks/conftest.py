"""Programs and models for targets."""

import pytest

from benchmarks.network import Generator, split_cores
from benchmarks.targets import Setting
from benchmarks.workload import golden


@pytest.fixture(scope="package")
def setting(models):
    cores, generator_cores = split_cores()
    with Generator(generator_cores[:1], "python") as generator:
        yield Setting(
            models=models, model=None, workload=golden(models), cores=cores, addresses={},
            checkouts={}, generator=generator,
        )  # fmt: skip

"""Some bad nights of the server; `make simulate` has more, and replays them."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.http2.connection import Connection
from tests.simulation.__main__ import kind_of, shrunk, simulation_of
from tests.simulation.simulation import Simulation

KEPT = (Path(__file__).parent / "seeds.txt").read_text().splitlines()


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_nothing_is_wrong_with_the_first_seeds(first):
    simulations = [Simulation(seed) for seed in range(first, first + 10)]
    assert {
        simulation.seed: simulation.failure for simulation in simulations if simulation.run()
    } == {}


@pytest.mark.parametrize("line", [line for line in KEPT if not line.startswith("#")])
def test_what_was_once_wrong_is_right(line):
    assert simulation_of(line.split()[0]).run() == ""


def test_same_seed_is_the_same_simulation_in_another_process():
    code = (
        "from tests.simulation.simulation import Simulation\n"
        "simulation = Simulation(4)\nsimulation.run()\nprint(simulation.digest)"
    )
    seen = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, text=True,
                       cwd=Path(__file__).parents[2], capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1


def test_fault_is_found_and_its_world_shrinks(monkeypatch):
    monkeypatch.setattr(Connection, "acknowledge", lambda *_: None)
    seed = next(seed for seed in range(100) if Simulation(seed).run())
    short = simulation_of(shrunk(str(seed)))
    assert kind_of(short.run()) == kind_of(Simulation(seed).run())
    assert len(short.plan) <= len(Simulation(seed).plan)

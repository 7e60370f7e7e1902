"""Simulations from the command line.

python -m tests.simulation 1000          run the seeds below 1,000, and shrink those that fail
python -m tests.simulation story 17      print the events of one: 17, or of a part of it: 17:3,5
python -m tests.simulation injected       count the injected faults that are found
"""

import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.simulation.simulation import BEGIN_S, Simulation

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def simulation_of(name):
    """Make the simulation of a seed, such as 17, or of a part of its events, as 17:3,5."""
    seed, _, kept = name.partition(":")
    return Simulation(int(seed), [int(each) for each in kept.split(",") if each] if _ else None)


def failure_of(name):
    return simulation_of(name).run()


def kind_of(failure):
    """Return a failure without its numbers."""
    return "".join(each for each in failure if not each.isdigit())


def shrunk(name):
    """Leave out the events that a simulation's failure does not need."""
    kind, seed = kind_of(failure_of(name)), name.partition(":")[0]
    kept = list(simulation_of(name).plan)
    size = max(1, len(kept) // 2)
    while size:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if kind_of(failure_of(f"{seed}:{','.join(map(str, fewer))}")) == kind:
                kept = fewer
            else:
                at += size
        size //= 2
    return f"{seed}:{','.join(map(str, kept))}"


def run(seed):
    simulation = Simulation(seed)
    failure = simulation.run()
    return seed, simulation.now_s - BEGIN_S, failure


def run_all(seeds, *, is_first):
    """Run simulations on all cores; return how many have failed."""
    begin_s, total_s, failed = time.monotonic(), 0.0, []
    with ProcessPoolExecutor() as pool:
        for seed, seconds, failure in pool.map(run, seeds, chunksize=5):
            total_s += seconds
            if failure:
                failed.append(seed)
                print(f"seed {seed}: {failure}", flush=True)
                if is_first:
                    pool.shutdown(cancel_futures=True)
                    return 1
    took_s = time.monotonic() - begin_s
    print(f"{len(failed)} failed; {total_s:.0f} s were simulated in {took_s:.0f} s")
    for seed in failed[:3]:
        print(f"shorter: python -m tests.simulation story {shrunk(str(seed))}")
    return len(failed)


def find(fault, num_seeds):
    """Run simulations on a copy of the server that has a fault, up to the first that fails."""
    name, old, new, what = fault.replace("|", "\n").split("\t")
    with tempfile.TemporaryDirectory() as folder:
        for package in ("serving", "digit_classifier"):
            shutil.copytree(ROOT / package, Path(folder) / package)
        shutil.copytree(ROOT / "tests" / "simulation", Path(folder) / "tests" / "simulation")
        (Path(folder) / "tests" / "__init__.py").touch()
        path = Path(folder) / "serving" / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has changed: {old}"
        path.write_text(text.replace(old, new))
        command = [sys.executable, "-m", "tests.simulation", "first", str(num_seeds)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 1 and done.stdout:
        return f"{what}: {done.stdout.splitlines()[0]}"
    return f"{what}: not found {done.stderr[-500:]}"


def injected(num_seeds, first):
    """Print which injected faults are found; return how many are not."""
    faults = (HERE / "faults.tsv").read_text().splitlines()[1:]
    num_missed = 0
    for number, fault in enumerate(faults[first - 1 :], first):
        print(f"{number:2}. {(line := find(fault, num_seeds))}", flush=True)
        num_missed += "not found" in line
    print(f"{num_missed} of {len(faults) + 1 - first} are not found")
    return num_missed


def main(command="1000", argument="1000", first="1"):
    if command == "story":
        simulation = simulation_of(argument)
        simulation.run()
        print(*simulation.story, sep="\n")
        return bool(simulation.failure)
    if command == "injected":
        return injected(int(argument), int(first))
    is_first = command == "first"
    return min(1, run_all(range(int(argument if is_first else command)), is_first=is_first))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

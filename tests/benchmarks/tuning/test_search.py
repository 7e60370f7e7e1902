from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.result_file import Latencies
from benchmarks.tuning import report
from benchmarks.tuning.candidates import Candidate, grid
from benchmarks.tuning.search import (
    FINAL_ROUNDS,
    FINALISTS,
    Goal,
    Trial,
    cells_of,
    front,
    halve,
    num_turns,
    stages,
    steadied,
    worst_is_better,
)

CALLERS = (1, 4, 16, 64)
USUAL, ONE, TWO = Candidate(), Candidate(threads=1, instances=1), Candidate(threads=2, instances=1)


def trial(candidate, rate, *, callers=4, p99_s=0.01, stage=0, num_errors=0, memory=1 << 20):
    return Trial(
        candidate=candidate, callers=callers, rows=1, stage=stage, seconds=1.0, rows_per_s=rate,
        p50_s=p99_s / 2, p99_s=p99_s, num_calls=100, num_errors=num_errors, memory_bytes=memory,
        latency=Latencies.of([p99_s]),
    )  # fmt: skip


def server(seed, noise):
    """A made-up model: what each setting gains, and noise that time makes smaller."""
    generator = np.random.default_rng(seed)
    gains = {c: generator.uniform(0.3, 1.0) for c in grid(4, 64)}

    def true_rate(candidate, callers):
        return 1000 * gains[candidate] * min(callers, 16) ** 0.5

    def measure(candidate, stage):
        spread = noise / np.sqrt(stage.seconds)
        return [
            trial(candidate, true_rate(candidate, n) * generator.normal(1, spread), callers=n,
                  p99_s=n / true_rate(candidate, n), stage=stage.number)
            for n in CALLERS
        ]  # fmt: skip

    return true_rate, measure


@pytest.mark.parametrize("seed", range(10))
def test_halving_finds_one_of_the_best_within_ten_percent(seed):
    true_rate, measure = server(seed, noise=0.02)
    candidates = grid(4, 64)
    found = halve(candidates, Goal(), 0.1, seed, measure)
    chosen = Goal().choose(cells_of(found))
    best = max(true_rate(c, n) for c in candidates for n in CALLERS)
    assert true_rate(chosen.candidate, chosen.callers) >= 0.9 * best
    assert len(found) < 0.6 * len(candidates) * len(CALLERS) * 2 ** len(stages(len(candidates), 1))


def test_same_seed_measures_in_the_same_order():
    orders = []
    for seed in (3, 3, 4):
        _, measure = server(0, noise=0.0)
        order = [each.candidate for each in halve(grid(2, 64), Goal(), 0.1, seed, measure)]
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("seed", range(5))
def test_drift_of_the_machine_decides_nothing(seed):
    true_rate, measure = server(seed, noise=0.0)
    turns = iter(range(10_000))

    def drifting(candidate, stage):
        pace = 1 + 0.8 * np.sin(next(turns) / 15)  # from 0.2 to 1.8 times the rate
        return [replace(t, rows_per_s=t.rows_per_s * pace) for t in measure(candidate, stage)]

    candidates = grid(4, 64)
    found = halve(candidates, Goal(), 0.1, seed, drifting)
    last = max(t.stage for t in found)
    chosen = Goal().choose(cells_of(steadied([t for t in found if t.stage == last])))
    best = max(true_rate(c, n) for c in candidates for n in CALLERS)
    assert true_rate(chosen.candidate, chosen.callers) >= 0.9 * best


def test_reference_is_measured_between_the_others_in_every_stage():
    _, measure = server(1, noise=0.0)
    found = halve(grid(4, 64), Goal(), 0.1, 0, measure)
    for stage in stages(len(grid(4, 64)) - 1, 0.1):
        turns = sorted({t.turn for t in found if t.stage == stage.number})
        assert len(turns) == stage.rounds * num_turns(stage.num_candidates)
        usual = sorted(
            {t.turn for t in found if t.stage == stage.number and t.candidate == Candidate()}
        )
        assert (usual[0], usual[-1]) == (turns[0], turns[-1])
        assert all(b - a <= 5 for a, b in pairwise(usual))


def test_stages_halve_and_take_twice_as_long():
    planned = stages(31, 0.1)
    assert [stage.num_candidates for stage in planned] == [31, 16, 8, 4, 3]
    assert all(b.seconds == 2 * a.seconds for a, b in pairwise(planned[:-1]))
    assert (planned[-1].num_candidates, planned[-1].rounds) == (FINALISTS, FINAL_ROUNDS)
    assert [stage.rounds for stage in stages(3, 0.1)] == [FINAL_ROUNDS]


def test_cell_with_errors_in_one_round_is_never_chosen():
    fast = [trial(ONE, 9000), trial(ONE, 9000, num_errors=1)]
    cells = cells_of([*fast, trial(TWO, 1000)])
    assert {cell.candidate: (cell.rows_per_s, cell.num_errors) for cell in cells} == {
        ONE: (0.0, 1), TWO: (1000, 0),
    }  # fmt: skip
    for goal in (Goal(), Goal("latency", 1.0), Goal("memory")):
        assert goal.choose(cells).candidate == TWO
    assert [cell.candidate for cell in front(cells)] == [TWO]
    assert Goal().choose(cells_of(fast)) is None


def test_latency_is_a_limit_of_p99():
    cells = cells_of(
        [
            trial(ONE, 900, callers=1, p99_s=0.004), trial(ONE, 9000, callers=64, p99_s=0.050),
            trial(TWO, 1500, callers=1, p99_s=0.009), trial(TWO, 2000, callers=64, p99_s=0.070),
        ]
    )  # fmt: skip
    assert Goal().choose(cells).candidate == ONE
    chosen = Goal("latency", 0.010).choose(cells)
    assert (chosen.candidate, chosen.callers) == (TWO, 1)
    assert Goal("latency", 0.001).choose(cells) is None
    assert Goal("latency", 0.001).ranked(cells) == [ONE, TWO]  # the nearer one first


WAITING = Candidate(threads=1, instances=1, batch=32, delay_s=0.002)
PROMPT = Candidate(threads=1, instances=1, batch=32, delay_s=0.0)


def test_latency_is_kept_with_fewer_callers_too():
    cells = cells_of(
        [
            trial(WAITING, 300, callers=1, p99_s=0.008),
            trial(WAITING, 9000, callers=64, p99_s=0.003),
            trial(PROMPT, 900, callers=1, p99_s=0.001),
            trial(PROMPT, 5000, callers=64, p99_s=0.003),
        ]
    )
    assert Goal().choose(cells).candidate == WAITING
    assert Goal("latency", 0.0035).choose(cells).candidate == PROMPT
    assert Goal("latency", 0.005).choose(cells).candidate == WAITING


def test_delay_that_gains_nothing_is_not_chosen():
    cells = cells_of([trial(WAITING, 1000), trial(PROMPT, 980), trial(TWO, 985), trial(USUAL, 900)])
    assert Goal().choose(cells).candidate == TWO
    cells = cells_of([trial(WAITING, 1000), trial(PROMPT, 960), trial(USUAL, 900)])
    assert Goal().choose(cells).candidate == WAITING


def test_call_that_is_slower_alone_is_told():
    trials = [
        trial(USUAL, 900, callers=1, p99_s=0.0006), trial(USUAL, 5000, callers=64),
        trial(WAITING, 300, callers=1, p99_s=0.0072), trial(WAITING, 9000, callers=64),
        trial(PROMPT, 900, callers=1, p99_s=0.0006), trial(PROMPT, 8000, callers=64),
    ]  # fmt: skip
    chosen = Goal().choose(cells_of(trials))
    expected = (
        "A call alone is slower: p50 3.6 ms, 300 µs by defaults, as a run waits 2 ms for more "
        "rows. With few callers: --callers 1,4."
    )
    assert report.lone_caller(trials, chosen) == expected
    assert report.comments(trials, chosen, Goal(), {})[-1] == expected
    assert expected in report.verdict(trials, chosen, Goal())
    others = [each for each in trials if each.candidate != WAITING]
    assert not report.lone_caller(others, Goal().choose(cells_of(others)))
    many = [each for each in trials if each.callers > 1]
    assert not report.lone_caller(many, chosen), "it was not measured"


def test_memory_is_the_least_that_is_fast_enough():
    cells = cells_of(
        [
            trial(USUAL, 1000, memory=300), trial(ONE, 850, memory=200), trial(TWO, 500, memory=100)
        ]
    )  # fmt: skip
    assert Goal("memory").choose(cells).candidate == ONE


def test_defaults_are_kept_where_they_are_as_good():
    assert Goal().choose(cells_of([trial(ONE, 1000), trial(USUAL, 980)])).candidate == USUAL
    assert Goal().choose(cells_of([trial(ONE, 1000), trial(USUAL, 900)])).candidate == ONE


def test_front_has_no_cell_that_another_beats_twice():
    cells = cells_of(
        [
            trial(ONE, 100, callers=1, p99_s=0.001), trial(ONE, 200, callers=4, p99_s=0.002),
            trial(TWO, 150, callers=1, p99_s=0.003), trial(TWO, 300, callers=4, p99_s=0.004),
        ]
    )  # fmt: skip
    assert [cell.rows_per_s for cell in front(cells)] == [100, 200, 300]


def test_worst_round_of_the_chosen_must_beat_the_best_of_the_defaults():
    usual = [trial(USUAL, rate) for rate in (100, 110, 105)]
    for rates, is_better in (((120, 111, 140), True), ((120, 109, 140), False)):
        trials = [*usual, *(trial(ONE, rate) for rate in rates)]
        cells = {cell.candidate: cell for cell in cells_of(trials)}
        assert worst_is_better(trials, cells[ONE], cells[USUAL]) is is_better

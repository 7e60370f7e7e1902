"""A cell of the results: a target at one task, which every round measures once."""

from dataclasses import dataclass

from benchmarks.targets.target import Spec

LATENCY = {"SingleStream": 0.90}
"""Scenarios whose figure is a latency, and at which quantile; the others' is a rate."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Cell:
    """A target and a task."""

    spec: Spec
    scenario: str
    callers: int = 1
    """Calls in flight; 0 in Offline for as many as keep the target busy, and in open loops."""
    batch: int = 1
    """Images a call."""
    connections: int = 0
    """ClosedLoop: over which the callers are spread; 0 leaves it to the generator."""
    overload: float = 0.0
    """Overload: the offered rate, as a multiple of the closed loop's rate before it."""

    @property
    def is_latency(self) -> bool:
        """Whether less is better."""
        return self.scenario in LATENCY

    @property
    def is_open(self) -> bool:
        """Whether calls come by themselves, which needs a server."""
        return self.scenario in ("Server", "Overload")

    @property
    def in_flight(self) -> str:
        """The callers, as "64", or as "8 × 8" where their connections were named."""
        if not self.connections:
            return str(self.callers)
        return f"{self.connections} × {self.callers // self.connections}"

    @property
    def task(self) -> str:
        """The scenario and its sizes."""
        size = f", {self.batch} a call" if self.batch > 1 else ""
        loop = f" {self.in_flight}" if self.scenario == "ClosedLoop" else ""
        return f"{self.scenario}{loop}{size}" + (f" {self.overload:g} ×" if self.overload else "")

    def __str__(self) -> str:
        return f"{self.spec}, {self.task}"

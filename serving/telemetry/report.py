"""The content of the metrics page, from one process or several."""

import time
from dataclasses import replace
from typing import NamedTuple

from serving.config import BatchingConfig
from serving.system.process import Usage
from serving.telemetry.metrics import Counts


class Served(NamedTuple):
    """A version in service."""

    name: str
    version: str
    device: str
    precision: str
    transport: str
    num_classes: int
    """Of a classifier; 0 of other models."""


class State(NamedTuple):
    """Health, as /readyz shows it."""

    is_serving: bool = False
    stuck_models: frozenset[str] = frozenset()
    """Models that do not answer, or wrongly, while the server goes on."""


class Report(NamedTuple):
    """The content of the metrics page at one moment; workers send it to their supervisor."""

    models: tuple[Served, ...]
    """The served models: the default version of each."""
    batching: BatchingConfig
    """Sizes and limits, of each model."""
    num_waiting: int
    """Rows that wait for a run."""
    queue_capacity: int
    """The most rows that may wait."""
    num_calls: int
    """Calls in progress."""
    is_serving: bool
    """Whether health is SERVING."""
    usage: Usage
    """Memory and file descriptors of the process."""
    counts: Counts
    """The counts so far."""
    stuck_models: frozenset[str] = frozenset()
    """Models that do not answer, or wrongly."""

    def ended(self) -> "Report":
        """Return the report of a process that has ended: its models, and zeros."""
        return self._replace(
            num_waiting=0, num_calls=0, is_serving=False, usage=Usage(), counts=Counts()
        )


def total(reports: list[Report], earlier: Counts) -> Report:
    """Add up the reports of workers, at least one, and the counts of those that died."""
    counts = sum([report.counts for report in reports], earlier)
    usages = [Usage.now(), *(report.usage for report in reports)]  # the supervisor's, too
    return Report(
        models=reports[0].models,
        batching=reports[0].batching,
        num_waiting=sum(report.num_waiting for report in reports),
        queue_capacity=sum(report.queue_capacity for report in reports),
        num_calls=sum(report.num_calls for report in reports),
        is_serving=all(report.is_serving for report in reports),
        usage=Usage(*map(sum, zip(*usages, strict=True))),
        counts=replace(counts, cpu_s=counts.cpu_s + time.process_time()),
        stuck_models=frozenset[str]().union(*(report.stuck_models for report in reports)),
    )

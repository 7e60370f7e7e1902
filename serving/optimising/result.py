"""What came out: candidates with their figures, the best of them, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.optimising.candidates import Candidate
from serving.optimising.gate import GateVerdict
from serving.optimising.measure import LEAST_ALONE, Gain, Rates
from serving.optimising.served import Served


@dataclass(frozen=True, kw_only=True, slots=True)
class TriedCandidate:
    """A candidate that was tried."""

    candidate: Candidate
    reason: str = ""
    """Why it is not taken: not made, not loaded, refused by the gate, or not faster."""
    verdict: GateVerdict | None = None
    """What the gate says; None if it could not be made."""
    rates: Rates | None = None
    """Rows a second; None if it was not measured."""
    alone: Gain | None = None
    """Its gain over fp32 of a call that is alone."""
    busy: Gain | None = None
    """Its gain over fp32 with many callers."""
    is_batched: bool = False
    """Whether rows of callers share its runs."""
    num_bytes: int = 0
    """The size of its file."""

    @property
    def gain(self) -> float:
        """The median gain with many callers, which decides; 0 if it was not measured."""
        return 0.0 if self.busy is None else self.busy.median

    @property
    def is_sure(self) -> bool:
        """Whether its worst round with many callers beats fp32's best one."""
        return self.busy is not None and self.busy.is_sure

    @property
    def is_slow_alone(self) -> bool:
        """Whether a lone call would take longer; of small models it is mostly the call itself."""
        return self.alone is not None and self.alone.median < LEAST_ALONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimization:
    """The outcome of `serving.optimize`."""

    name: str
    """The model's."""
    tried: tuple[TriedCandidate, ...]
    """All candidates, in the order in which they were tried."""
    chosen: TriedCandidate | None
    """The best one; None if nothing is gained."""
    reason: str
    """What was found, in a sentence: the gain, or why there is none."""
    fp32: Rates | None = None
    """The model's own rows a second."""
    is_batched: bool = False
    """Whether rows of callers share runs of the model as it is."""
    fp32_bytes: int = 0
    """The size of its files."""
    served: tuple[Served, ...] = ()
    """Rates through a server; empty if nothing was chosen."""
    num_calibration: int = 0
    """Samples that scales were calibrated with."""
    num_held_out: int = 0
    """Samples that the gate compared answers on."""
    notes: tuple[str, ...] = ()
    """What a user should know of samples and measurement."""
    processor: str = ""
    """The processor and device that it was gated and measured on."""
    version: Path | None = None
    """The folder of the published version; None if nothing was published."""
    page: Path | None = None
    """The page with the picture; None if none was written."""


def passing(tried: Sequence[TriedCandidate]) -> list[TriedCandidate]:
    """Return those that no reason stands against, the fastest first."""
    return sorted((each for each in tried if not each.reason), key=lambda each: -each.gain)

"""Latencies kept as counts in log-linear buckets, in the manner of HdrHistogram.

Below 128 us a bucket is 1 us wide; above, each octave has 64 buckets, so a value read back is off
by at most 0.8 %. To read one from a results file without this module:

    index, count = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").reshape(2, -1)
    octave = np.maximum(index // 64 - 1, 0);  lowest_us = (index - 64 * octave) * 2**octave
"""

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

_SUB_BITS = 6
_SUB = 1 << _SUB_BITS


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Counts of latencies by bucket."""

    index: npt.NDArray[np.int64]
    """The buckets that hold something, ascending."""
    count: npt.NDArray[np.int64]
    """How many each holds."""

    @classmethod
    def of(cls, latencies_s: npt.ArrayLike) -> Self:
        """Count latencies in seconds."""
        microseconds = np.maximum(np.asarray(latencies_s, float) * 1e6, 0).astype(np.int64)
        octave = np.maximum(np.frexp(microseconds)[1] - 1 - _SUB_BITS, 0)
        return cls(*np.unique((microseconds >> octave) + _SUB * octave, return_counts=True))

    @classmethod
    def joined(cls, histograms: Iterable["Latencies"]) -> Self:
        """Add up several histograms."""
        parts = list(histograms)
        index, place = np.unique(np.concatenate([p.index for p in parts]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([p.count for p in parts]))
        return cls(index, counts.astype(np.int64))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Decode the text of `encode`."""
        words = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
        return cls(*words.reshape(2, -1))

    def encode(self) -> str:
        """Write as base64 of zlib of uint32: the buckets, then their counts."""
        words = np.concatenate((self.index, self.count)).astype("<u4")
        return base64.b64encode(zlib.compress(words.tobytes(), 9)).decode()

    @property
    def total(self) -> int:
        """How many latencies were counted."""
        return int(self.count.sum())

    @property
    def values_s(self) -> npt.NDArray[np.float64]:
        """The middle of each bucket, in seconds."""
        octave = np.maximum(self.index // _SUB - 1, 0)
        return np.asarray((self.index - _SUB * octave + 0.5) * np.exp2(octave) * 1e-6)

    def quantile(self, share: float) -> float:
        """Return the latency in seconds that `share` of the calls did not exceed; 0.99 for p99.

        That is the smallest bucket such that this share falls into it or below, as MLPerf and
        HdrHistogram count; NaN without a call.
        """
        if not self.total:
            return float("nan")
        rank = max(1, int(np.ceil(share * self.total)))
        return float(self.values_s[np.searchsorted(np.cumsum(self.count), rank)])

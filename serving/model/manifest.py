"""A version's description: that of its manifest, or what is known without one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from serving.config import Precision
from serving.tensors import Images, Probabilities, Signature

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a probability from the manifest's: processors add in different orders."""

if TYPE_CHECKING:
    from serving.model.agreement import AnswerComparison
    from serving.model.golden import Golden
    from serving.model.preprocessing import Preprocessing
    from serving.model.verdicts import Verdict

MANIFEST = "manifest.json"
FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
MAX_MANIFEST_BYTES = 512 << 10
"""Twice the most that the exporter writes of golden samples."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """The exporter's description of a version."""

    name: str
    version: str
    test_accuracy: float | None
    """Share of the test samples answered correctly, 0 to 1; None if unknown."""
    digests: dict[str, str]
    """File name to SHA-256, in hexadecimal."""
    golden_images: Images
    """(N, pixels) uint8: samples to check a loaded model."""
    golden_probabilities: dict[Precision, Probabilities]
    """(N, classes) float32: the answers of each exported variant to them; empty without a file."""
    signature: Signature | None = None
    """The shape of its images, and its classes; None if it isn't known to classify images."""
    pictures: "Preprocessing | None" = None
    """How pictures become its input, and the names of its classes; None if it takes none."""
    verdicts: "Mapping[str, Verdict]" = field(default_factory=dict)
    """Whether the rows of its files are independent, by file name, as today's rules found it."""
    golden: "Golden | None" = None
    """Calls of any model with the answers that its writer got, of golden.npz; None without one, and
    once they are checked."""
    comparison: "AnswerComparison | None" = None
    """How golden.npz is compared; None without one."""
    gated_on: str = ""
    """The processor and device that its answers come from."""
    optimized: str = ""
    """How it was made faster, and of what, as `optimize` wrote; empty for other versions."""
    unknown: tuple[str, ...] = ()
    """Fields that have no meaning here."""

    @classmethod
    def of_graph(cls, name: str, version: str, digests: dict[str, str]) -> Self:
        """Describe a version that has no manifest."""
        return cls(
            name=name,
            version=version,
            test_accuracy=None,
            digests=digests,
            golden_images=np.empty((0, 0), np.uint8),
            golden_probabilities={},
            signature=None,
        )


class Unfit(Exception):
    """The model is unfit to serve; the text completes a line that begins with its version."""

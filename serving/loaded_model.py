"""A model that is ready to serve: read, verified, built, and checked on its golden samples."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving import repository
from serving.config import Device, Precision
from serving.engine import Engine, open_engine
from serving.errors import ConfigurationError, CorruptModel
from serving.images import IMAGE_BYTES, Images
from serving.predictions import Probabilities
from serving.repository import Manifest

_log = logging.getLogger(__name__)

GOLDEN_TOLERANCE = 1e-3
"""How far a probability may lie from the manifest's: other processors add in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that has answered its golden samples correctly."""

    engine: Engine
    manifest: Manifest
    precision: Precision

    @property
    def version(self) -> str:
        """The version named in every answer, such as "3"."""
        return self.manifest.version

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return self.engine.device

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`."""
        return self.engine.run(images)

    def warm_up(self, max_batch_size: int) -> None:
        """Run batches of growing sizes, so that no caller's run is the one that allocates.

        Raises:
            ModelError: a run failed.
        """
        size = 1
        while size < max_batch_size:
            self.run(np.zeros((size, IMAGE_BYTES), np.uint8))
            size *= 2
        self.run(np.zeros((max_batch_size, IMAGE_BYTES), np.uint8))


def load_model(
    model_dir: Path,
    version: str | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> LoadedModel:
    """Read, verify, build and check one version.

    Args:
        model_dir: the model's directory, such as models/digits.
        version: which one; None for the newest good one: a corrupt version is passed over with a
            warning.
        device: "auto", "cpu" or "cuda".
        precision: "fp32" or "int8"; int8 runs on the CPU only, which is what "auto" is for it.

    Raises:
        ModelNotFound: no such version.
        CorruptModel: the version asked for, or every version, is damaged or answers wrongly.
        DeviceError: the device can't be used.
        ConfigurationError: the version has no such variant, or int8 was asked for on CUDA.
    """
    if precision == "int8":
        if device == "cuda":
            raise ConfigurationError("int8 runs on the CPU only: device cuda needs precision fp32")
        device = "cpu"
    if version is not None:
        return _load_version(model_dir, version, device, precision)
    failures = []
    for candidate in repository.versions(model_dir):
        try:
            return _load_version(model_dir, candidate, device, precision)
        except CorruptModel as err:
            _log.warning("version %s is passed over: %s", candidate, err)
            failures.append(f"{candidate} ({err})")
    raise CorruptModel(f"no version in {model_dir} is good: {'; '.join(failures)}")


def _load_version(
    model_dir: Path, version: str, device: Device, precision: Precision
) -> LoadedModel:
    file = repository.load(model_dir, version, precision)
    model = LoadedModel(open_engine(file.onnx, device), file.manifest, precision)
    probabilities = model.run(file.manifest.golden_images)  # also the warm-up
    difference = np.abs(probabilities - file.manifest.golden_probabilities[precision]).max()
    if not difference <= GOLDEN_TOLERANCE:  # also refuses NaN
        raise CorruptModel(
            f"version {version} answers its golden samples wrongly: a probability is off by "
            f"{difference:.2g}, at most {GOLDEN_TOLERANCE:g} expected"
        )
    return model

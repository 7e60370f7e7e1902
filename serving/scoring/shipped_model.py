"""A model version as bytes, for machines that do not have its directory."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.config import Device, Precision
from serving.model import repository
from serving.model.loaded_model import BATCH_LIMIT_FACTOR, LoadedModel, load_model
from serving.model.manifest import FILES, MANIFEST


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """The files of one version; can be pickled."""

    name: str
    version: str
    precision: Precision
    manifest: bytes
    onnx: bytes

    @classmethod
    def of(cls, model_dir: Path, version: str, precision: Precision) -> "ShippedModel":
        """Read a version's files.

        Raises:
            CorruptModel: a file is damaged.
        """
        _, onnx = repository.load(model_dir, version, precision)
        manifest = (model_dir / version / MANIFEST).read_bytes()
        return cls(model_dir.name, version, precision, manifest, onnx)

    def load(self, device: Device, max_batch_size: int) -> LoadedModel:
        """Verify, build and check the model, as from its directory; see `load_model`."""
        with tempfile.TemporaryDirectory(prefix="digits-") as folder:
            model_dir = Path(folder) / self.name
            (model_dir / self.version).mkdir(parents=True)
            (model_dir / self.version / MANIFEST).write_bytes(self.manifest)
            (model_dir / self.version / FILES[self.precision]).write_bytes(self.onnx)
            return load_model(
                model_dir, self.version, device, self.precision, max_batch_size,
                BATCH_LIMIT_FACTOR, is_described=True,
            )  # fmt: skip

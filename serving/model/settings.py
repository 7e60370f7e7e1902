"""A model's own settings, in the config.pbtxt beside its versions: Triton's file, read here too.

Fields that have a meaning here: name (a check), backend, platform, max_batch_size (0: calls run
alone), dynamic_batching (max_queue_delay_microseconds), instance_group (count, kind),
version_policy, default_model_filename, input and output (a check), and the parameters `batching`,
which is auto, always or never, `spot_checks`, which is on or off, and `max_run_seconds`. Parameters
of Triton's backend for ONNX Runtime are `intra_op_thread_count`, `enable_mem_arena`, options of
CUDA, and some of `session.*`. All others that are set are named in one line of the log. A mistake
is an error with the field, and the model is not loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serving.config import BatchingConfig, BatchingMode, Device, Precision, SpotChecking
from serving.errors import CorruptModel
from serving.model.onnx_runtime import SessionSettings
from serving.tensors import Tensor, TensorSignature

SETTINGS = "config.pbtxt"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """How one model is served, where that differs from the server's options."""

    batching: BatchingMode = "auto"
    """auto: rows are batched if the graph proves them independent; always; never."""
    max_batch_size: int = 1 << 31
    """The most rows in one run; the server's own limit counts, too."""
    max_queue_delay_s: float | None = None
    """Seconds to wait for more rows before a run; None for the server's."""
    max_run_s: float | None = None
    """Seconds that a run may take; None for the server's."""
    spot_checks: SpotChecking | None = None
    """Whether calls of batches are run alone once more now and then; None for the server's."""
    instances: int | None = None
    """Runs at once; None for as many as the cores allow."""
    num_threads: int = 0
    """Threads of one run; 0 for the server's."""
    keeps_memory: bool | None = None
    """Whether runs keep their memory for the next ones; None to find out what pays."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Options of CUDA's execution provider, by ONNX Runtime's names."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Entries of the session's configuration, by ONNX Runtime's names."""
    device: Device = "auto"
    """Device of the runs; auto for the server's."""
    versions: str | None = None
    """The versions to serve: latest, all, or numbers such as 3,4; None for the server's."""
    num_latest: int = 1
    """How many of the newest."""
    file_name: str | None = None
    """The name of a version's file."""
    tensors: tuple[tuple[str, str | None, tuple[int, ...]], ...] = ()
    """Inputs and outputs: name, datatype or None, and the sizes of axes, -1 for any."""
    has_batch_axis: bool = False
    """Whether these sizes leave out a first axis of rows."""
    name: str | None = None
    """The model's name, as the file says it."""
    ignored: tuple[str, ...] = ()
    """Fields and parameters that are set and have no meaning here."""

    def of(self, batching: BatchingConfig) -> BatchingConfig:
        """Return the server's settings with those of this model."""
        delay_s = batching.max_queue_delay_s
        return replace(
            batching,
            max_batch_size=min(batching.max_batch_size, self.max_batch_size),
            max_queue_delay_s=delay_s if self.max_queue_delay_s is None else self.max_queue_delay_s,
            max_run_s=self.max_run_s or batching.max_run_s,
            spot_checks=self.spot_checks or batching.spot_checks,
        )

    def session(self, device: Device, precision: Precision) -> SessionSettings:
        """Return the settings of a session for this model.

        Args:
            device: the device that was asked for.
            precision: the variant of the model.
        """
        return SessionSettings(
            device=device,
            precision=precision,
            num_threads=self.num_threads or 1,
            keeps_memory=bool(self.keeps_memory),
            provider_options=self.provider_options,
            config=self.config,
        )

    def require(self, tensors: TensorSignature) -> None:
        """Check a graph's inputs and outputs against the file.

        Raises:
            CorruptModel: one is missing, or differs.
        """
        found = {each.name: each for each in (*tensors.inputs, *tensors.outputs)}
        for name, datatype, dims in self.tensors:
            if name not in found:
                raise CorruptModel(f"{SETTINGS}: the graph has no tensor {name[:100]!r}")
            tensor = found[name]
            shape = tensor.shape[1:] if self.has_batch_axis else tensor.shape
            fits = len(shape) == len(dims) and all(
                -1 in pair or pair[0] == pair[1] for pair in zip(shape, dims, strict=True)
            )
            if datatype not in (None, tensor.datatype) or not (fits or not tensor.shape):
                raise CorruptModel(
                    f"{SETTINGS}: expected {Tensor(name, datatype or tensor.datatype, dims)}"
                    f"{' without the batch axis' * self.has_batch_axis}, the graph has {tensor}"
                )


NO_SETTINGS = ModelSettings()

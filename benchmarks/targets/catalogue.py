"""The targets by name, with descriptions and possible settings."""

from collections.abc import Container
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.targets.engine import open_engine
from benchmarks.targets.servers import open_server
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec


@dataclass(frozen=True, slots=True)
class Entry:
    """A target in a few words, and the settings that it can have."""

    about: str
    on_cuda: bool = True
    as_int8: bool = True
    in_workers: bool = True
    is_for_any_model: bool = True

    def lack(self, spec: Spec) -> str:
        """Say which of a spec's settings the target lacks; empty if it has all."""
        if spec.device == "cuda" and not self.on_cuda:
            return "runs on the CPU only"
        if spec.precision == "int8" and not self.as_int8:
            return "has no int8 variant"
        if spec.precision == "int8" and spec.device == "cuda":
            return "int8 runs on the CPU only"
        return "runs in one process" if spec.workers > 1 and not self.in_workers else ""


CATALOGUE = {
    "plain": Entry("the grpcio server of a tutorial", False, False, False, False),
    "engine": Entry("ONNX Runtime as the server runs it, in process", in_workers=False),
    "grpcio": Entry("our server, grpcio transport", is_for_any_model=False),
    "grpcio-infer": Entry("the same, called by ModelInfer"),
    "h2": Entry("our server, h2 transport", is_for_any_model=False),
    "h2-infer": Entry("the same, called by ModelInfer"),
    "http-json": Entry("our server over HTTP, numbers as JSON"),
    "http-binary": Entry("the same, tensors as bytes"),
}
_ADDRESS = Entry("an Open Inference Protocol server", False, False, False)
_CHECKOUT = Entry("our server in another checkout")


def entry_of(target: str, checkouts: Container[str]) -> Entry:
    """Return the entry of a target: one of CATALOGUE, of another checkout, or by address."""
    return _CHECKOUT if target in checkouts else CATALOGUE.get(target, _ADDRESS)


def open_target(spec: Spec, setting: Setting) -> AbstractContextManager[Running]:
    """Start a target.

    Raises:
        NotMeasured: it lacks a setting; the context raises this, too, where it can't run.
    """
    entry = entry_of(spec.target, setting.checkouts)
    if lack := entry.lack(spec):
        raise NotMeasured(lack)
    if setting.model and not entry.is_for_any_model:
        raise NotMeasured("it serves digits only")
    return (open_engine if spec.target == "engine" else open_server)(spec, setting)

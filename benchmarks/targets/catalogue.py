"""The targets by name, with descriptions and possible settings."""

from collections.abc import Container
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.targets.clients import CLIENTS, open_client
from benchmarks.targets.in_process import OPENERS, open_in_process
from benchmarks.targets.servers import HTTP, OURS, VARIANTS, open_server
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec


@dataclass(frozen=True, slots=True)
class Entry:
    """A target in a few words, and the settings that it can have."""

    about: str
    on_cuda: bool = False
    as_int8: bool = False
    in_workers: bool = False

    def lack(self, spec: Spec) -> str:
        """Say which of a spec's settings the target lacks; empty if it has all."""
        if spec.device == "cuda" and not self.on_cuda:
            return "runs on the CPU only"
        if spec.precision == "int8" and not self.as_int8:
            return "has no int8 variant"
        if spec.precision == "int8" and spec.device == "cuda":
            return "int8 runs on the CPU only"
        return "runs in one process" if spec.workers > 1 and not self.in_workers else ""


def _ours(about: str) -> Entry:
    return Entry(about, on_cuda=True, as_int8=True, in_workers=True)


CATALOGUE = {
    "null": Entry("answers at once: prices the harness"),
    "keras": Entry("model.predict, in process", on_cuda=True),
    "engine": Entry("ONNX Runtime as the server runs it", on_cuda=True, as_int8=True),
    "classifier": Entry("the embedded Classifier, in process", on_cuda=True, as_int8=True),
    "classifier-async": Entry("the same, awaited by tasks", on_cuda=True, as_int8=True),
    **{f"{ours}{end}": _ours(about.format(ours))
       for ours in OURS for end, (_, about) in VARIANTS.items()},
    **{target: _ours(about) for target, (_, about) in HTTP.items()},
    **{client: Entry(about) for client, about in CLIENTS.items()},
    "plain": Entry("the grpcio server of a tutorial"),
}  # fmt: skip
_ADDRESS = Entry("an Open Inference Protocol server")
_CHECKOUT = _ours("our server in another checkout")


def entry_of(target: str, checkouts: Container[str]) -> Entry:
    """Return the entry of a target: one of CATALOGUE, of another checkout, or by address."""
    return _CHECKOUT if target in checkouts else CATALOGUE.get(target, _ADDRESS)


def open_target(spec: Spec, setting: Setting) -> AbstractContextManager[Running]:
    """Start a target.

    Raises:
        NotMeasured: it lacks a setting; the context raises this, too, where it can't run.
    """
    if lack := entry_of(spec.target, setting.checkouts).lack(spec):
        raise NotMeasured(lack)
    if spec.target in CLIENTS:
        return open_client(spec, setting)
    return (open_in_process if spec.target in OPENERS else open_server)(spec, setting)

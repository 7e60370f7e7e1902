"""A model's versions as callers reach them: loops get these, which never change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.errors import ModelNotFound
from serving.model.loaded import LoadedModel
from serving.tensors import TensorSignature


class Canary(NamedTuple):
    """The version that gets a share of the calls that name no version."""

    version: str
    share: float
    """From 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelVersions:
    """One model as it is served; a reload replaces it by another one."""

    name: str
    versions: Mapping[str, LoadedModel]
    """From the newest to the oldest."""
    default_version: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """The version of each label."""
    canary: Canary | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    """The versions that are there and not served, and why: the same sentence for everybody."""

    @property
    def default(self) -> LoadedModel:
        """The model for calls that name no version."""
        return self.versions[self.default_version]

    @property
    def waiting(self) -> Mapping[str, str]:
        """Newer versions than the default that are not served, and why."""
        newest = int(self.default_version)
        return {each: why for each, why in self.reasons.items() if int(each) > newest}

    def find(self, version: str) -> LoadedModel:
        """Return the model of a version or a label.

        Raises:
            ModelNotFound: there is none; the text has those that there are, or why it is not
                served.
        """
        model = self.versions.get(self.labels.get(version, version))
        if model is not None:
            return model
        if reason := self.reasons.get(version):
            raise ModelNotFound(f"model {self.name!r} version {version} is not served: {reason}")
        there = ", ".join([*self.versions, *self.labels])
        raise ModelNotFound(f"model {self.name!r} has no version {version[:40]!r}, only {there}")

    def choose(self, number: float) -> LoadedModel:
        """Return the model for a call that names no version: the canary for its share of them.

        Args:
            number: any from 0 to 1 (without 1), all equally probable.
        """
        if self.canary is not None and number < self.canary.share:
            return self.versions[self.canary.version]
        return self.default

    def __str__(self) -> str:
        """Return text such as "versions 4, 3; default 3; canary 4"."""
        share = (
            f"; canary {self.canary.version} gets {self.canary.share:.3g}" if self.canary else ""
        )
        return f"versions {', '.join(self.versions)}; default {self.default_version}{share}"


def signature_of(model: LoadedModel) -> object:
    """Return the facts that callers rely on: images and classes, or the tensors."""
    tensors = model.tensors
    return model.signature or TensorSignature(tensors.inputs, tensors.outputs, is_batchable=True)


def facts_of(served: ModelVersions) -> object:
    """Return what makes one differ from another for callers."""
    return list(served.versions.items()), served.default_version, served.labels, served.canary

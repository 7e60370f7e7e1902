"""The versions of one model that are in service."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.errors import ModelNotFound
from serving.model.loaded_model import LoadedModel


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

    @property
    def default(self) -> LoadedModel:
        """The model for calls that name no version."""
        return self.versions[self.default_version]

    def find(self, version: str) -> LoadedModel:
        """Return the model of a version or a label.

        Raises:
            ModelNotFound: there is none; the text has those that there are.
        """
        model = self.versions.get(self.labels.get(version, version))
        if model is None:
            there = ", ".join([*self.versions, *self.labels])
            raise ModelNotFound(
                f"model {self.name!r} has no version {version[:40]!r}, only {there}"
            )
        return model

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

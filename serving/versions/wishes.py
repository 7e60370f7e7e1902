"""What is wished of a model: by the command line, its own settings, and its labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.config import ModelConfig
from serving.handlers.loading import FILE as HANDLER
from serving.handlers.loading import HandlerSource
from serving.model.loading import LoadOptions, settings_of, settled
from serving.model.settings import NO_SETTINGS, ModelSettings
from serving.model.version_labels import CANARY, STABLE, read_labels


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one look goes by; the command line takes precedence over the model's settings."""

    config: ModelConfig
    settings: ModelSettings
    versions: str
    """"latest", "all", or numbers with commas between."""
    num_latest: int
    """How many of the latest."""
    labels: Mapping[str, str]
    """The version of each label."""
    share: float
    """Of the calls, for the version that is labelled a canary."""
    handler: HandlerSource | None
    """The one that the command line names."""
    may_have_handlers: bool
    """Whether versions may bring their own."""

    @classmethod
    def at(
        cls,
        place: Path,
        config: ModelConfig,
        handler: HandlerSource | None,
        *,
        may_have_handlers: bool,
    ) -> "Wishes":
        """Read what is wished of the model at a place.

        Raises:
            ConfigurationError: its settings or labels can't be used.
        """
        settings = NO_SETTINGS if place.suffix == ".py" else settings_of(place)
        is_default = config.version is None and config.versions == "latest"
        labels, share = ({}, 0.0) if config.version else read_labels(place)
        return cls(
            config,
            settings,
            config.version or (is_default and settings.versions) or config.versions,
            max(settings.num_latest, 1 + (config.canary > 0)),
            labels,
            share,
            handler,
            may_have_handlers,
        )

    @property
    def are_numbers(self) -> bool:
        """Whether versions are named by their numbers."""
        return self.versions not in ("latest", "all")

    @property
    def is_pinned(self) -> bool:
        """Whether the command line names the only version."""
        return self.config.version is not None

    @property
    def canary(self) -> float:
        """The share of the calls for the newest version, unless labels say otherwise."""
        return 0.0 if self.labels.keys() & {STABLE, CANARY} else self.config.canary

    def handler_in(self, place: Path, number: str) -> Path | None:
        """Return where a version would have a handler of its own; None if it can't."""
        is_folder = self.handler is None and not place.is_file()
        return place / number / HANDLER if is_folder else None

    def options(
        self, place: Path, name: str, device: str, max_batch_size: int, most_threads: int
    ) -> LoadOptions:
        """Return how its versions are loaded.

        Args:
            place: the model's folder, or its file.
            name: the model's.
            device: "auto", or the one that it is on already: a reload never moves to another one.
            max_batch_size: the most rows of a run.
            most_threads: those of a run that is alone.
        """
        config = self.config
        options = LoadOptions(
            device=device,  # type: ignore[arg-type]
            precision=config.precision,
            settings=self.settings,
            max_batch_size=max_batch_size,
            max_bytes=config.max_model_bytes,
            most_threads=1 if config.threads else most_threads,
            tries_file=True,
            name=name,
        )
        return settled(options, place, config.batching_of(name), config.threads or 1)

    def choice(self, served: list[str]) -> str:
        """Say which versions are chosen, to whom asks for another one.

        Args:
            served: those that are served.
        """
        there = ", ".join(served)
        if self.are_numbers:
            return f"only the versions that are named are served: {there}"
        if self.num_latest == 1:
            return f"only the newest good version is served: {there}"
        return f"only the newest {self.num_latest} good versions are served: {there}"

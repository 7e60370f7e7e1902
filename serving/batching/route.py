"""One model of a server: each call's way to the batcher of a version."""

from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

from serving.batching.batcher import Batcher
from serving.batching.group import Group
from serving.catalog.versions import ModelVersions
from serving.config import BatchingConfig
from serving.errors import DigitsError
from serving.model.loaded_model import LoadedModel
from serving.signature import ModelInfo, Signature
from serving.tensors import TensorSignature


class _State(NamedTuple):
    """The versions of a route at one moment."""

    versions: ModelVersions
    batchers: Mapping[str, Batcher]
    """By version, the newest first."""
    default: Batcher | None
    """None once the model is gone."""
    canary: Batcher | None
    share: float


class Route:
    """One model as long as it keeps its signature: a batcher for each version in service.

    Calls that name no version are for its default, or for the canary's share of them; a route takes
    them as a batcher does.
    """

    def __init__(
        self, name: str, versions: ModelVersions, batching: BatchingConfig, random: Random,
        new_batcher: Callable[[LoadedModel], Batcher], gone: Callable[[], DigitsError],
    ) -> None:  # fmt: skip
        """Serve these versions of a model.

        Args:
            name: the model's name for callers.
            versions: its versions.
            batching: sizes and limits.
            random: draws the canary's calls.
            new_batcher: makes the batcher of a version.
            gone: called when a call comes after `end`; returns why it is not answered.
        """
        self.name = name
        """The model's name for callers."""
        self._batching, self._random = batching, random
        self._new_batcher, self._gone = new_batcher, gone
        self._state = _State(versions, {}, None, None, 0.0)
        self.serve(versions)

    def serve(self, versions: ModelVersions) -> None:
        """Serve other versions, labels and shares from now on; from any thread."""
        known = {batcher.model: batcher for batcher in self._state.batchers.values()}
        batchers = {
            version: known.get(model) or self._new_batcher(model)
            for version, model in versions.versions.items()
        }
        canary = versions.canary
        self._state = _State(
            versions, batchers, batchers[versions.default_version],
            batchers[canary.version] if canary else None, canary.share if canary else 0.0,
        )  # fmt: skip

    def end(self) -> None:
        """Answer no more calls."""
        self._state = self._state._replace(default=None, canary=None)

    @property
    def versions(self) -> ModelVersions:
        """The versions in service, and their labels."""
        return self._state.versions

    @property
    def batchers(self) -> Mapping[str, Batcher]:
        """The batcher of each version, the newest first."""
        return self._state.batchers

    @property
    def model(self) -> LoadedModel:
        """The default version."""
        return self._state.versions.default

    @property
    def tensors(self) -> TensorSignature:
        """The inputs and outputs of the default version."""
        return self.model.tensors

    @property
    def signature(self) -> Signature | None:
        """The signature of a classifier of images, else None."""
        return self.model.signature

    def find(self, version: str) -> "Route | Batcher":
        """Return the receiver of calls for a version or a label; "" for calls that name none.

        Raises:
            ModelNotFound: there is none.
        """
        state = self._state
        return state.batchers[state.versions.find(version).version] if version else self

    def info(self, transport: str) -> ModelInfo:
        """Describe a classifier of images, as `transport` serves it."""
        return self.model.info(self.name, transport, self._batching)

    # As a batcher

    def submit(self, group: Group) -> int:
        """See `Batcher.submit`."""
        _, _, default, canary, share = self._state
        if default is None:
            return self._refuse(group)
        if canary is None:
            return default.submit(group)
        number, taken = self._drawn(group, share), 0
        if number:
            taken = canary.submit(group.cut(0, number), is_final=False)
        if taken < len(group.streams):
            taken += default.submit(group.cut(taken, len(group.streams)))
        return taken

    def add(self, group: Group) -> None:
        """See `Batcher.add`."""
        _, _, default, canary, share = self._state
        if default is None:
            self._refuse(group)
            return
        if canary is None:
            default.add(group)
            return
        number = self._drawn(group, share)
        if number:
            canary.add(group.cut(0, number))
        if number < len(group.streams):
            default.add(group.cut(number, len(group.streams)))

    def room_for_stream(self, num_rows: int) -> int:
        """See `Batcher.room_for_stream`."""
        both = (self._state.default, self._state.canary)
        return min((each.room_for_stream(num_rows) for each in both if each is not None), default=1)

    def _drawn(self, group: Group, share: float) -> int:
        """Return how many of some calls are the canary's."""
        return sum(self._random.random() < share for _ in group.streams)

    def _refuse(self, group: Group) -> int:
        """End calls that were recognised as ones for a model that is gone."""
        group.sink.fail(group, self._gone())
        return len(group.streams)

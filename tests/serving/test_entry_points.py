"""Entry points of applications: which are imported, in which order, and which are none."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from serving import applications
from serving.applications import BundledModel, bundled_model, installed, modules_of
from serving.errors import ConfigurationError

GROUP = "digit_serving.http"


class Point:
    """An entry point, whose module is there, or not."""

    def __init__(self, name, value, found=None):
        self.name, self.value, self.module = name, value, value.partition(":")[0]
        self.found = found or f"module {value}"

    def load(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def points(monkeypatch):
    """Those of each group."""
    found: dict[str, list[Any]] = {}
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: found.get(group, []))
    installed.cache_clear()
    yield found
    installed.cache_clear()


def test_entry_points_are_imported_in_the_order_of_their_names(points):
    points[GROUP] = [Point("b", "two.it"), Point("a", "one"), Point("b", "two.it")]
    points["digit_serving.grpc"] = [Point("c", "three")]
    assert [*installed(GROUP).items()] == [("a", "module one"), ("b", "module two.it")]
    assert modules_of(GROUP) == ["one", "two.it", "two.it"]
    points[GROUP] = []
    assert len(installed(GROUP)) == 2, "once for the whole process"


def test_two_of_one_name_are_refused(points):
    points[GROUP] = [Point("a", "two"), Point("a", "one")]
    with pytest.raises(ConfigurationError) as caught:
        installed(GROUP)
    assert str(caught.value) == f"two and one, of {GROUP}, are both 'a'"


def missing(name):
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (missing("own.http"), None), (missing("other"), None),
        (missing("library"), "ModuleNotFoundError: No module named 'library'"),
        (ModuleNotFoundError("x"), "ModuleNotFoundError: x"),
        (RuntimeError("a\n  b"), "RuntimeError: a b"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_can_not_be_imported_is_none_or_an_error(error, reason, points):
    """None without its own package, or that of another application which it needs."""
    points[GROUP] = [Point("a", "own.http", error), Point("b", "b")]
    points["digit_serving.commands"] = [Point("other", "other.command")]
    if reason is None:
        assert installed(GROUP) == {"b": "module b"}
        return
    with pytest.raises(ConfigurationError) as caught:
        installed(GROUP)
    assert str(caught.value) == f"own.http, of {GROUP}, can't be used: {reason}"


def test_model_of_the_package_is_the_first_of_them(points):
    assert bundled_model() is None
    installed.cache_clear()
    points[applications.MODELS] = [Point("b", "b:B", Path("b")), Point("a", "a:A", Path("a"))]
    assert bundled_model() == BundledModel("a", Path("a"))

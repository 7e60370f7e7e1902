"""Entry points, as `importlib.metadata` lists them."""

import sys
from importlib import metadata
from zipfile import ZipFile

import pytest

from serving import entry_points

TEXT = """\
# a comment
[others]
sum = math:fsum
[of.group]
  b = json.decoder:JSONDecoder.decode  [extra]
a=json
[more]
c = json
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that is all of the path, and one that is not there."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "none.zip"), str(tmp_path)])
    return tmp_path


def install(folder, name, text=TEXT):
    (folder / name).mkdir(parents=True)
    (folder / name / "METADATA").write_text(f"Name: {name.partition('-')[0]}\nVersion: 1\n")
    if text is not None:
        (folder / name / "entry_points.txt").write_text(text)


def pairs(points):
    return sorted((each.name, each.value.partition("[")[0].strip()) for each in points)


def test_those_of_this_environment_are_listed():
    groups = metadata.entry_points().groups
    assert "digit_serving.grpc" in groups
    for group in groups:
        assert pairs(entry_points.find(group)) == pairs(metadata.entry_points(group=group))


def test_names_and_values_are_read_and_loaded(path):
    install(path, "some-1.dist-info")
    first, second = entry_points.find("of.group")
    assert (first.name, first.value, first.module) == ("a", "json", "json")
    assert first.load() is sys.modules["json"]
    assert (second.name, second.module) == ("b", "json.decoder")
    assert second.load() is sys.modules["json"].JSONDecoder.decode
    assert entry_points.find("none") == []


def test_first_distribution_of_a_name_counts(path):
    other = path / "later"
    sys.path.append(str(other))
    install(path, "One.Name-1.dist-info", None)
    install(other, "one_name-2.dist-info")
    install(other, "Two-1.egg-info")
    install(other, "two.txt")
    assert pairs(entry_points.find("more")) == pairs(metadata.entry_points(group="more"))
    assert pairs(entry_points.find("more")) == [("c", "json")]


def test_distribution_in_a_zip_file_is_found(path):
    with ZipFile(path / "apps.zip", "w") as file:
        file.writestr("zipped-1.dist-info/METADATA", "Name: zipped\nVersion: 1\n")
        file.writestr("zipped-1.dist-info/entry_points.txt", "[of.group]\nz = json:loads [x]\n")
    sys.path.append(str(path / "apps.zip"))
    (found,) = entry_points.find("of.group")
    assert (found.name, found.value) == ("z", "json:loads")


def test_finder_of_others_is_asked(path, monkeypatch):
    class Finder:
        @staticmethod
        def find_spec(*_):
            return None

        @staticmethod
        def find_distributions(context):
            return iter([metadata.Distribution.at(path / "hidden" / "far-1.dist-info")])

    install(path / "hidden", "far-1.dist-info", "[of.group]\nfar = json\n")
    assert entry_points.find("of.group") == []
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert pairs(entry_points.find("of.group")) == [("far", "json")]

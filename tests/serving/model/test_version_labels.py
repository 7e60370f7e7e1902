"""The labels of versions: a file is read whole, or refused in a line."""

import json

import pytest

from serving.errors import ConfigurationError
from serving.model.version_labels import read_labels


def labels_of(folder, content):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    (folder / "labels.json").write_bytes(content)
    return read_labels(folder)


def test_without_a_file_there_are_none(tmp_path):
    assert read_labels(tmp_path) == read_labels(tmp_path / "none") == ({}, 0.0)
    (tmp_path / "file").touch()
    assert read_labels(tmp_path / "file") == ({}, 0.0)


@pytest.mark.parametrize(
    ("content", "versions", "share"),
    [
        ({}, {}, 0.0),
        ({"stable": "3", "x-1.y_z": "999999999"}, {"stable": "3", "x-1.y_z": "999999999"}, 0.0),
        ({"canary": "4"}, {"canary": "4"}, 0.0),
        ({"canary": {"version": "4", "share": 0.25}}, {"canary": "4"}, 0.25),
        ({"canary": {"share": 1, "version": "4"}}, {"canary": "4"}, 1.0),
        ({"canary": {"version": "4", "share": 0}, "a" * 64: "1"}, {"canary": "4", "a" * 64: "1"},
         0.0),
    ],
)  # fmt: skip
def test_labels_name_versions(content, versions, share, tmp_path):
    found = labels_of(tmp_path, content)
    assert found == (versions, share)
    assert type(found[1]) is float


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "an object of labels is expected"),
        (b"{", "Expecting property name enclosed in double quotes"),
        (b"[" * 60_000, "maximum recursion depth exceeded"),
        (b'{"a": "1", "a": "2"}', "'a' stands there twice"),
        ({"1a": "1"}, "'1a' is no label: letters, digits, _ . - (first no digit)"),
        ({"a" * 65: "1"}, "' is no label"),
        ({"ä": "1"}, "'ä' is no label"),
        ({"a": 1}, 'a must be a version such as "3", got 1'),
        ({"a": "0"}, 'a must be a version such as "3", got \'0\''),
        ({"a": "1000000000"}, "a must be a version such as"),
        ({"stable": {"version": "4", "share": 0.2}}, "stable must be a version"),
        ({"canary": {"version": "4"}}, "canary has a version and a share, got ['version']"),
        ({"canary": {"version": "4", "share": 0.2, "x": 1}}, "canary has a version and a share"),
        ({"canary": {"version": 4, "share": 0.2}}, "canary must be a version"),
        ({"canary": {"version": "4", "share": 1.5}}, "the share must be from 0 to 1, got 1.5"),
        ({"canary": {"version": "4", "share": -0.1}}, "the share must be from 0 to 1, got -0.1"),
        ({"canary": {"version": "4", "share": True}}, "the share must be from 0 to 1, got True"),
        ({"canary": {"version": "4", "share": "1"}}, "the share must be from 0 to 1, got '1'"),
        (b'{"canary": {"version": "4", "share": NaN}}', "the share must be from 0 to 1, got nan"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_line(content, text, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        labels_of(tmp_path, content)
    assert str(caught.value).startswith("can't use labels.json: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"^can't read labels.json: .*65537 bytes, at most"
    ):
        labels_of(tmp_path, b" " * 65_537)
    assert labels_of(tmp_path, b"{}" + b" " * 65_534) == ({}, 0.0)


@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1])
def test_file_has_64_kibibytes_at_most(size, tmp_path):
    content = b'{"stable": "3"}'.ljust(size)
    if size > 64 << 10:
        with pytest.raises(ConfigurationError, match=r"labels\.json"):
            labels_of(tmp_path, content)
    else:
        assert labels_of(tmp_path, content) == ({"stable": "3"}, 0.0)

"""Sentences that stand in several places are equal, and claims about the repository hold."""

import re
import tomllib
from pathlib import Path

import serving
from serving.cli import commands

ROOT = Path(__file__).parents[2]


def text(name):
    return (ROOT / name).read_text("utf-8")


def test_the_project_is_described_by_one_sentence():
    _, sentence, *_ = [line for line in text("README.md").splitlines() if line]
    assert sentence.endswith(".")
    assert tomllib.loads(text("pyproject.toml"))["project"]["description"] == sentence
    assert f"\nsite_description: {sentence}\n" in text("mkdocs.yml")
    assert f'image.description="{sentence}"' in text("Containerfile")
    assert sentence in text("docs/index.md").splitlines()
    assert sentence in (serving.__doc__ or "").splitlines()
    assert " ".join(commands.parser({}).format_help().split()).count(sentence) == 1


def test_readme_fits_on_three_screens():
    assert len(text("README.md").splitlines()) <= 100


def test_actions_of_the_workflows_are_pinned_by_commit():
    uses = [
        line.split("uses:")[1].strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(uses) > 8
    pinned = re.compile(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+")
    assert not [use for use in uses if not pinned.fullmatch(use)]

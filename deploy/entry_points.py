"""Writes the entry points of projects beside them, as an installation does, for the container."""

import configparser
import sys
import tomllib
from pathlib import Path


def main(*files: str) -> None:
    """Write the entry points of each pyproject.toml into a .dist-info folder beside it."""
    for file in map(Path, files):
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        name = project["name"].replace("-", "_")
        folder = file.parent / f"{name}-{project['version']}.dist-info"
        folder.mkdir()
        points = configparser.ConfigParser()
        points.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case of names
        points.read_dict(project["entry-points"])
        with (folder / "entry_points.txt").open("w", encoding="utf-8") as written:
            points.write(written)


if __name__ == "__main__":
    main(*sys.argv[1:])

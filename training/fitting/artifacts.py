"""The artifacts folder: training's output, read by export and report.

model.keras     the network: (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities
history.json    loss, accuracy and so on, each with a value per epoch
metrics.json    how it was trained, and how good it is
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras

from serving.commandline import installation
from training.errors import NotTrained
from training.files import write_atomically


def load_model(artifacts: Path) -> keras.Model:
    """Read model.keras.

    Raises:
        NotTrained: it is missing or unreadable.
    """
    path = artifacts / "model.keras"
    if not path.exists():
        raise NotTrained(
            f"nothing is trained in {artifacts}: run {installation.run('train')} first"
        )
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise NotTrained(f"cannot read {path}: run {installation.run('train')} again") from err


def load_json(artifacts: Path, name: str) -> dict[str, Any]:
    """Read metrics.json or history.json.

    Raises:
        NotTrained: it is missing or unreadable.
    """
    path = artifacts / name
    try:
        contents: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise NotTrained(f"cannot read {path}: run {installation.run('train')} again") from err
    return contents


def save(
    artifacts: Path, model: keras.Model, rows: list[dict[str, float]], metrics: dict[str, Any]
) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        OSError: a file could not be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        write_atomically(artifacts / "model.keras", Path(folder, "model.keras").read_bytes())
    history = {name: [row[name] for row in rows] for name in rows[0]}
    write_atomically(artifacts / "history.json", json.dumps(history, indent=2).encode())
    write_atomically(artifacts / "metrics.json", json.dumps(metrics, indent=2).encode())

"""The machine and the software that figures depend on, without anything that names the machine."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "grpcio", "protobuf", "uvloop",
)  # fmt: skip


def describe(models: Path, cores: Mapping[str, int]) -> dict[str, Any]:
    """Describe the machine and the software.

    Args:
        models: the model repository's root, or a model's file.
        cores: how many cores the targets and the generators have.
    """
    query = ("nvidia-smi", "--format=csv,noheader", "--query-gpu")
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_for": dict(cores),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": _output("cat", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "gpu": _output(*query, "name"),
        "gpu_driver": _output(*query, "driver_version"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "h2load": _output("h2load", "--version"),
        "commit": _commit(),
        "model": _model(models),
    }


def _cpu() -> str:
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    name = fields.get("model name", "unknown")
    # Virtual machines hide the name: family and model distinguish generations.
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _output(*command: str) -> str | None:
    """Return a program's first line; None if it is missing or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return result.stdout.strip().partition("\n")[0] or None
    return None


def _commit() -> str | None:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit


def _model(models: Path) -> dict[str, str] | None:
    """Return which model is measured, by its files' digests."""
    if models.is_file():
        return {"digest": hashlib.sha256(models.read_bytes()).hexdigest()[:16]}
    files = (models / "digits").glob("[1-9]*/manifest.json")
    newest = max(files, key=lambda file: int(file.parent.name), default=None)
    if newest is None:
        return None
    manifest = json.loads(newest.read_text("utf-8"))
    digest = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
    return {"recipe": manifest["recipe"], "version": manifest["version"], "digest": digest[:16]}

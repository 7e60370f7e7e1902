"""The verdict on a model's rows: proved independent, checked by a run, and kept for the next start.

A verdict depends on nothing but the bytes of the model, the rules and ONNX Runtime's version. So it
is kept in a file of the user's cache, by a digest of these. The manifests of installed packages, as
that of the bundled digits, have verdicts on their files, which spare the first start, too: the
modules of the proof are imported only where there is no verdict.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from serving.config import BatchingMode
from serving.model.onnx_runtime import runtime
from serving.system.files import read_regular

_log = logging.getLogger(__name__)
VARIABLE = "SERVING_VERDICTS"
"""The environment variable that names the folder of verdicts; or `off`."""
_SOURCES = "proof", "model/judging.py"
_MAX_FILES = 8192
"""The oldest of more are removed."""
_MAX_BYTES = 4 << 10
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether rows may share a batch."""

    obstacle: str | None
    """Why not; None if they are proved independent and a run agrees."""
    remark: str = ""
    """What the check by a run left out, if anything."""

    def document(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def rules_version() -> str:
    """Return a digest of the source of rules and check: a verdict holds as long as it is this."""
    return sources_version(*_SOURCES)


@cache
def sources_version(*names: str) -> str:
    """Return a digest of the source of files and folders of this package."""
    digest = hashlib.sha256()
    here = resources.files("serving")
    for name in names:
        part = here / name
        files = part.iterdir() if part.is_dir() else [part]
        for each in sorted(files, key=lambda file: file.name):
            if each.name.endswith((".py", ".tsv", ".binpb")):
                digest.update(each.read_bytes())
    return digest.hexdigest()


def key_of(onnx_digest: str, weights_digests: Mapping[str, str]) -> str:
    """Return the name of the verdict on a model.

    Args:
        onnx_digest: SHA-256 of the ONNX file, in hexadecimal.
        weights_digests: of files with weights, by their location in the model.
    """
    parts = [onnx_digest, sorted(weights_digests.items()), rules_version(), runtime().__version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def name_of(*facts: str) -> str:
    """Return the name of what is kept, by all that it rests on."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def folder() -> Path | None:
    """Return the folder of verdicts; None if none are kept."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return None if named in ("", "off") else Path(named)
    try:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return Path(user, "digit-serving", "verdicts")


def kept(key: str) -> Verdict | None:
    """Return the verdict that an earlier start kept; a file of others' or a damaged one is none."""
    where = folder()
    if where is None:
        return None
    path = where / f"{key}.json"
    try:
        if hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid():
            return None
        document = json.loads(read_regular(path, _MAX_BYTES, _NO_LINK))
        return verdict_of(document) if document["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def verdict_of(document: Mapping[str, Any]) -> Verdict:
    """Return the verdict in a document's fields.

    Raises:
        ValueError: a field is no text.
        KeyError, TypeError: there is none.
    """
    obstacle, remark = document["obstacle"], document["remark"]
    texts = [remark] if obstacle is None else [remark, obstacle]
    if not all(isinstance(each, str) and each.isprintable() for each in texts):
        raise ValueError("not a verdict")
    return Verdict(obstacle, remark)


def keep(key: str, verdict: Verdict) -> None:
    """Keep a verdict for the next start, where the folder can be written."""
    where = folder()
    if where is None:
        return
    data = json.dumps({"key": key, **verdict.document()})
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=where, suffix=".tmp", delete=False) as file:
            file.write(data)
        os.replace(file.name, where / f"{key}.json")
        _remove_oldest(where)
    except OSError as err:
        _log.debug("the verdict is not kept in %s: %s", where, err.strerror)


def _remove_oldest(where: Path) -> None:
    with os.scandir(where) as entries:
        files = [(each.stat().st_mtime_ns, each.path) for each in entries if each.is_file()]
    for _, path in sorted(files)[:-_MAX_FILES]:
        with suppress(FileNotFoundError):  # another process has removed it
            os.unlink(path)


def line_of(obstacle: str | None, mode: BatchingMode) -> str:
    """Return one line that says whether rows are batched, and why not.

    Args:
        obstacle: why they are not proved independent; None if they are.
        mode: the operator's setting.
    """
    if mode == "never":
        return "batching off: the operator's setting"
    if obstacle is None:
        return "batching on: row independence proved"
    if mode == "always":
        return f"batching on by the operator's setting, not proved: {obstacle}"
    return f"batching off: {obstacle}"

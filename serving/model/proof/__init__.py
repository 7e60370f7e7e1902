"""The proof that a model's rows are independent, so that they may share a batch."""

from functools import cache
from hashlib import sha256
from importlib import resources

from serving.model.proof.sizes import Size
from serving.model.proof.values import Mixes, Value
from serving.model.proof.walk import Proof, prove

__all__ = ["Mixes", "Proof", "Size", "Value", "prove", "rules_version"]


@cache
def rules_version() -> str:
    """Return a digest of the proof's source: a verdict holds as long as this stays the same."""
    digest = sha256()
    here = resources.files(__name__)
    sources = sorted((each for each in here.iterdir() if each.name.endswith(".py")), key=_name)
    for each in (*sources, resources.files("serving.model") / "onnx_file.py"):
        digest.update(each.read_bytes())
    return digest.hexdigest()


def _name(file: resources.abc.Traversable) -> str:
    return file.name

"""The proof that a model's rows are independent, so that they may share a batch."""

from serving.model.proof.sizes import Size
from serving.model.proof.values import Mixes, Value
from serving.model.proof.walk import Proof, prove

__all__ = ["Mixes", "Proof", "Size", "Value", "prove"]

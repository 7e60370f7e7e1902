"""Training recipes: every hyper-parameter, in one place."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Deformation:
    """How far an image may be deformed; each image draws its own deformation every epoch."""

    rotation_deg: float
    """Largest rotation either way, in degrees."""
    scale: float
    """Largest stretch or squeeze of height and of width, as a fraction."""
    shear: float
    """Largest slant, in columns per row."""
    shift_px: float
    """Largest shift along each axis, in pixels."""
    elastic_px: float
    """Standard deviation of the elastic displacement along each axis, in pixels."""
    elastic_sigma_px: float
    """Distance over which the elastic displacement varies, in pixels: its Gaussian's sigma."""
    thickness: float = 0.0
    """Largest share of a pixel by which strokes grow or shrink on either side."""

    def __post_init__(self) -> None:
        """Refuse what would leave no digit to see."""
        _check(self, 0, 45, "rotation_deg")
        _check(self, 0, 0.9, "scale", "shear")
        _check(self, 0, 1, "thickness")
        _check(self, 0, 14, "shift_px", "elastic_px")
        _check(self, 0.5, 28, "elastic_sigma_px")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """What the network learns from teachers; their images are deformed as its own are."""

    teacher: "Recipe"
    """How each teacher is trained, from a seed of its own."""
    teachers: int
    """How many there are; their mean answer counts."""
    views: int
    """How many times each training image is deformed and shown to them."""
    temperature: float
    """What their logits are divided by: above 1, their answers are less sure."""
    share: float
    """The weight of their answers; the labels have the rest."""

    def __post_init__(self) -> None:
        """Refuse what teaches nothing."""
        _check(self, 1, 999, "teachers", "views")
        _check(self, 0.1, 100, "temperature")
        _check(self, 0, 1, "share")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to train the network; the layers are always the same (training/model.py)."""

    name: str
    """What `--recipe` calls it."""

    # The data.
    validation_split: float
    """Fraction of the training images held out for validation, taken from the end."""
    deformation: Deformation | None = None
    """What is done to the training images; None shows them as they are."""

    distillation: Distillation | None = None
    """Whom it learns from beside the labels; it needs a deformation."""

    # The network.
    network: Literal["mlp", "cnn"] = "mlp"
    """The network that is served, or a teacher."""
    dropout: tuple[float, ...]
    """Fraction of each hidden layer's outputs dropped while training; for "cnn" of its last."""

    # The optimisation.
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step of the optimiser."""
    optimizer: Literal["rmsprop", "adamw"]
    """RMSprop at a constant rate, or AdamW whose rate rises linearly, then decays as a cosine."""
    learning_rate: float = 1e-3
    """The rate, or its peak."""
    warmup: float = 0.0
    """Share of all steps during which AdamW's rate rises."""
    weight_decay: float = 0.0
    """AdamW's decay of the weights, per step and unit of learning rate."""
    averaging: float = 0.0
    """Momentum of the moving average of the weights, per step; 0 keeps the weights themselves."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        _check(self, 1, inf, "epochs", "batch_size")
        _check(self, 0.001, 0.999, "validation_split")
        _check(self, 0, 0.9999, "dropout", "warmup", "averaging")
        _check(self, 0, inf, "learning_rate", "weight_decay")
        if self.distillation and not self.deformation:
            raise ValueError("distillation: expected a deformation beside it")

    @property
    def taught(self) -> tuple[Deformation, Distillation]:
        """What a recipe with teachers has; raises ValueError for any other."""
        if not self.deformation or not self.distillation:
            raise ValueError(f"recipe {self.name} has no teachers")
        return self.deformation, self.distillation


def _check(
    settings: Deformation | Distillation | Recipe, low: float, high: float, *names: str
) -> None:
    """Raise ValueError for the first of the named fields that is not within low to high."""
    for name in names:
        value = getattr(settings, name)
        if not all(low <= number <= high for number in np.atleast_1d(value)):
            raise ValueError(f"{name}: expected {low} to {high}, got {value}")


TEACHER = Recipe(
    name="teacher",
    validation_split=1 / 12,
    deformation=Deformation(
        rotation_deg=12,
        scale=0.15,
        shear=0.2,
        shift_px=2,
        elastic_px=1.1,
        elastic_sigma_px=4,
        thickness=0.5,
    ),
    network="cnn",
    dropout=(0.3,),
    epochs=20,
    batch_size=256,
    optimizer="adamw",
    learning_rate=4e-3,
    warmup=0.1,
    weight_decay=0.05,
    averaging=0.99,
)
"""How the teachers of a distilled recipe are trained."""

RECIPES = {
    recipe.name: recipe
    for recipe in (
        # The tutorial's: what everyone gets from this network at first, 98.15 % on the test set.
        Recipe(
            name="seed",
            validation_split=0.2,
            dropout=(0.4, 0.3, 0.2),
            epochs=30,
            batch_size=128,
            optimizer="rmsprop",
        ),
        # The same layers, trained for 80 s on two cores: images that differ every epoch need little
        # dropout; a decaying rate and averaged weights end the training where it is calm.
        # Chosen on the last 10,000 training images; 99.43 % on the test set (five seeds).
        Recipe(
            name="default",
            validation_split=1 / 12,
            deformation=Deformation(
                rotation_deg=10,
                scale=0.12,
                shear=0.15,
                shift_px=1.5,
                elastic_px=1.0,
                elastic_sigma_px=4,
            ),
            dropout=(0.03, 0.02, 0.01),
            epochs=100,
            batch_size=512,
            # Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
            optimizer="adamw",
            learning_rate=5e-3,
            warmup=0.03,
            weight_decay=0.1,
            averaging=0.996,
        ),
        # The same layers again, taught by two convolutional networks: a quarter of an hour on two
        # cores, four minutes where the teachers are cached. Chosen on the last 5,000 training
        # images; 99.49 % on the test set (three seeds).
        Recipe(
            name="best",
            validation_split=1 / 12,
            deformation=Deformation(
                rotation_deg=10,
                scale=0.12,
                shear=0.15,
                shift_px=1.5,
                elastic_px=1.0,
                elastic_sigma_px=4,
                thickness=0.25,
            ),
            distillation=Distillation(
                teacher=TEACHER, teachers=2, views=24, temperature=2.0, share=0.9
            ),
            dropout=(0.0, 0.0, 0.0),
            epochs=320,
            batch_size=512,
            optimizer="adamw",
            learning_rate=5e-3,
            warmup=0.03,
            weight_decay=0.1,
            averaging=0.998,
        ),
    )
}

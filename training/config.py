"""Training recipes: every hyper-parameter, in one place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, Self

import numpy as np

BUNDLED_UNITS = (256, 128, 56)
"""The outputs of each hidden layer of the bundled model."""
MOST_UNITS = 16_384


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
    identity_share: float = 0.0
    """The share of the images that are not deformed: as clean as those to be classified."""

    def __post_init__(self) -> None:
        """Refuse a deformation that makes digits unreadable."""
        _check(self, 0, 45, "rotation_deg")
        _check(self, 0, 0.9, "scale", "shear")
        _check(self, 0, 1, "thickness", "identity_share")
        _check(self, 0, 14, "shift_px", "elastic_px")
        _check(self, 0.5, 28, "elastic_sigma_px")

    def halved(self) -> "Deformation":
        """Return one that goes half as far."""
        amplitudes = ("rotation_deg", "scale", "shear", "shift_px", "elastic_px", "thickness")
        return replace(self, **{name: getattr(self, name) / 2 for name in amplitudes})


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """How the network learns from teachers, which see the same deformed images."""

    teacher: "Recipe"
    """How each teacher is trained, from a seed of its own."""
    teachers: int
    """The number of teachers; their logits are averaged."""
    views: int
    """The number of deformed copies of each training image that the teachers classify."""
    fine_tune_views: int = 0
    """The number of further ones, deformed half as far, for the recipe's last epochs."""
    temperature: float
    """The divisor of their logits: above 1, their probabilities are softer."""
    share: float
    """The weight of their probabilities in the loss; the labels have the rest."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, 1, 999, "teachers", "views")
        _check(self, 0, 999, "fine_tune_views")
        _check(self, 0.1, 100, "temperature")
        _check(self, 0, 1, "share")

    @property
    def all_views(self) -> int:
        """The number of all that the teachers classify: those of the last epochs come last."""
        return self.views + self.fine_tune_views


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to train the network; the layers are always those of training.fitting.networks."""

    name: str
    """Its name for `--recipe`."""

    # The data.
    validation_split: float
    """Fraction of the training images held out for validation, taken from the end; with 0 all are
    trained on, and the last 5,000 validate, deformed as they are in no epoch."""
    deformation: Deformation | None = None
    """How each epoch deforms the training images; None leaves them as they are."""
    fine_tune_share: float = 0.0
    """The share of the epochs, the last ones, that deform them half as far: the training ends on
    images like those to be read."""
    distillation: Distillation | None = None
    """The teachers to learn from, beside the labels; it needs a deformation."""
    degraded: float = 0.0
    """The share of the images that are noisy, blurred, pale, partly covered and so on."""
    outliers: float = 0.0
    """The share of the images that are replaced by images of no digit, without an answer."""

    # The network.
    network: Literal["mlp", "cnn"] = "mlp"
    """The network that is served, or that of a teacher."""
    units: tuple[int, ...] = (256, 128, 56)
    """The outputs of each hidden layer of "mlp"."""
    dropout: tuple[float, ...]
    """Fraction of each hidden layer's outputs dropped while training; for "cnn" of its last."""

    pretrained_share: float = 0.0
    """Above 0 the bundled model's weights are the first ones, and have this share in the mean of
    first and last weights that training ends with; at 0 the first ones are random."""

    # The optimisation.
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step of the optimiser."""
    optimizer: Literal["sgd", "rmsprop", "adamw", "muon"]
    """SGD with momentum or RMSprop at a constant rate, or AdamW or Muon whose rate rises linearly,
    then decays as a cosine."""
    learning_rate: float = 1e-3
    """The rate, or its peak."""
    warmup: float = 0.0
    """Share of all steps during which the rate rises."""
    weight_decay: float = 0.0
    """AdamW's or Muon's decay of the weights, per step and unit of learning rate."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average (EMA) of the weights, per step; 0 for no average."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and settings that do not fit together."""
        _check(self, 1, inf, "epochs", "batch_size")
        _check(self, 1, MOST_UNITS, "units")
        _check(self, 0, 0.999, "validation_split")
        _check(self, 0, 0.9999, "dropout", "warmup", "ema_decay")
        _check(self, 0, 0.5, "degraded", "outliers")
        _check(self, 0, 1, "fine_tune_share", "pretrained_share")
        _check(self, 0, inf, "learning_rate", "weight_decay")
        if self.distillation and not self.deformation:
            raise ValueError("distillation: expected a deformation, the teachers' images have one")
        if self.fine_tune_share and self.distillation and not self.distillation.fine_tune_views:
            raise ValueError("fine_tune_share: expected fine_tune_views beside it")
        num = len(self.units) if self.network == "mlp" else 1
        if not num or len(self.dropout) != num:
            raise ValueError(
                f"dropout: expected a rate for each of {num} hidden layers, got {len(self.dropout)}"
            )
        if self.pretrained_share and self.units != BUNDLED_UNITS:
            raise ValueError(
                f"units: expected those of the bundled model, {_joined(BUNDLED_UNITS)}, which the "
                f"training continues, got {_joined(self.units)}"
            )

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Return a copy with other settings.

        Args:
            settings: values by the names of fields. `augment` names one of `AUGMENTATIONS`. A
                `dropout` of one rate is that of each hidden layer.

        Raises:
            ValueError: a value is out of range, or does not fit to the others.
        """
        new = dict(settings)
        if "augment" in new:
            new |= AUGMENTATIONS[new.pop("augment")]
        num = len(new.get("units", self.units))
        if len(new.get("dropout", ())) == 1 and self.network == "mlp":
            new["dropout"] = new["dropout"] * num
        if "units" in new and "dropout" not in new and num != len(self.dropout):
            raise ValueError(
                f"units: {num} hidden layers, and the recipe's dropout {_joined(self.dropout)} is "
                f"for {len(self.dropout)}: set dropout, too, one rate or {num}"
            )
        return replace(self, **new)

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from those of the recipe of this name."""
        original = RECIPES.get(self.name, self)
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed = {n: value for n, value in values.items() if value != getattr(original, n)}
        of_images = {"deformation", "degraded", "outliers"}
        for name, settings in AUGMENTATIONS.items():
            if of_images & {*changed} and all(values[n] == v for n, v in settings.items()):
                changed = {n: v for n, v in changed.items() if n not in of_images}
                changed["augment"] = name
        return changed

    def changes_in_words(self) -> list[str]:
        """Return each changed setting and its value, such as "units 128,64"."""
        return [f"{name} {_word(value)}" for name, value in self.changes().items()]

    def as_json(self) -> dict[str, Any]:
        """Return all settings, as JSON can hold them; `of_json` reads them."""
        return asdict(self)

    @classmethod
    def of_json(cls, settings: Mapping[str, Any]) -> Self:
        """Read the settings that `as_json` returned.

        Raises:
            ValueError: they are no recipe's.
        """
        try:
            values: dict[str, Any] = {
                n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()
            }
            if values.get("deformation"):
                values["deformation"] = Deformation(**values["deformation"])
            if values.get("distillation"):
                teaching = values["distillation"]
                teacher = cls.of_json(teaching["teacher"])
                values["distillation"] = Distillation(**{**teaching, "teacher": teacher})
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as err:
            raise ValueError(f"no settings of a recipe: {err}") from err

    def deformation_in(self, epoch: int) -> Deformation | None:
        """Return how an epoch, from 0, deforms the training images."""
        if self.deformation and epoch >= self.first_mild:
            return self.deformation.halved()
        return self.deformation

    @property
    def first_mild(self) -> int:
        """The first epoch, from 0, that deforms them half as far."""
        return self.epochs - round(self.fine_tune_share * self.epochs)

    def views(self) -> tuple[Deformation, Distillation]:
        """Return how the teachers' views are deformed, and how they are learned from.

        Raises:
            ValueError: this recipe has no teachers.
        """
        if not self.deformation or not self.distillation:
            raise ValueError(f"recipe {self.name} has no teachers")
        return self.deformation, self.distillation


def _joined(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _word(value: object) -> str:
    """Write a setting's value."""
    if isinstance(value, tuple):
        return _joined(value)
    if isinstance(value, (float, int)):
        return f"{value:g}"
    return value if isinstance(value, str) else "changed"


def _check(
    settings: Deformation | Distillation | Recipe, low: float, high: float, *names: str
) -> None:
    """Raise ValueError for the first of the named fields that is not within low to high."""
    for name in names:
        value = getattr(settings, name)
        if not all(low <= number <= high for number in np.atleast_1d(value)):
            raise ValueError(f"{name}: expected {low} to {high}, got {value}")


DEFORMATION = Deformation(
    rotation_deg=10,
    scale=0.12,
    shear=0.15,
    shift_px=1.5,
    elastic_px=1.0,
    elastic_sigma_px=4,
    identity_share=0.15,
)
"""The share of the training images in `default`, and nearly that in `best`."""

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"deformation": None, "degraded": 0.0, "outliers": 0.0},
    "affine": {
        "deformation": replace(DEFORMATION, elastic_px=0), "degraded": 0.0, "outliers": 0.0,
    },
    "elastic": {"deformation": DEFORMATION, "degraded": 0.0, "outliers": 0.0},
    "full": {
        "deformation": replace(DEFORMATION, thickness=0.25, identity_share=0.2),
        "degraded": 0.1,
        "outliers": 0.02,
    },
}  # fmt: skip
"""What `--augment` does to the training images: nothing; rotation, scale, shear and shift; these
and elastic displacement; these, other stroke widths, degraded images and some of no digit."""

TEACHER = Recipe(
    name="teacher",
    validation_split=0,
    deformation=Deformation(
        rotation_deg=12,
        scale=0.15,
        shear=0.2,
        shift_px=2,
        elastic_px=1.1,
        elastic_sigma_px=4,
        thickness=0.35,
        identity_share=0.2,
    ),
    network="cnn",
    dropout=(0.3,),
    epochs=16,
    batch_size=256,
    optimizer="adamw",
    learning_rate=4e-3,
    warmup=0.1,
    weight_decay=0.05,
    ema_decay=0.99,
)
"""How the teachers of a distilled recipe are trained."""

# The tutorial's: the usual first result with this network, 98.15 % on the test set.
SEED = Recipe(
    name="seed",
    validation_split=0.2,
    dropout=(0.4, 0.3, 0.2),
    epochs=30,
    batch_size=128,
    optimizer="rmsprop",
)

# The same layers, trained for 85 s on two cores: images that differ every epoch need little
# dropout; a decaying rate and averaged weights end the training where the loss is flat.
# Chosen on the last 5,000 training images; 99.45 % on the test set (five seeds).
DEFAULT = Recipe(
    name="default",
    validation_split=0,
    deformation=DEFORMATION,
    degraded=0.1,
    outliers=0.02,
    dropout=(0.03, 0.02, 0.01),
    epochs=100,
    batch_size=512,
    optimizer="adamw",  # Loshchilov and Hutter, "Decoupled weight decay regularization", 2019
    learning_rate=5e-3,
    warmup=0.03,
    weight_decay=0.1,
    ema_decay=0.996,
)

# The same layers again, with two convolutional networks as teachers. Chosen on the last 5,000
# training images, without them; 99.60 % on the test set (five seeds).
BEST = replace(
    DEFAULT,
    name="best",
    deformation=replace(DEFORMATION, thickness=0.25, identity_share=0.2),
    distillation=Distillation(
        teacher=TEACHER, teachers=2, views=32, fine_tune_views=8, temperature=1.0, share=0.95
    ),
    fine_tune_share=0.2,
    dropout=(0.0, 0.0, 0.0),
    epochs=250,
    optimizer="muon",  # Jordan et al., "Muon: an optimizer for hidden layers in neural networks"
    learning_rate=2e-3,
    ema_decay=0.998,
)

# For a user's own digits. The mean of first and last weights keeps the answers to MNIST's: Wortsman
# et al., "Robust fine-tuning of zero-shot models", 2022. Chosen as the others.
FINE_TUNE = replace(
    BEST,
    name="fine-tune",
    pretrained_share=0.5,
    distillation=None,
    fine_tune_share=0.0,
    epochs=6,
    optimizer="adamw",
    learning_rate=3e-4,
)

RECIPES = {recipe.name: recipe for recipe in (SEED, DEFAULT, BEST, FINE_TUNE)}
"""The recipes by the name that `--recipe` takes."""

import dataclasses

import pytest

from training.config import RECIPES, Deformation

DEFORMATION = Deformation(
    rotation_deg=15, scale=0.15, shear=0.15, shift_px=2.5, elastic_px=0.5, elastic_sigma_px=3
)


def test_seed_recipe_is_the_tutorials():
    seed = RECIPES["seed"]
    assert (seed.optimizer, seed.learning_rate) == ("rmsprop", 0.001)
    assert (seed.batch_size, seed.epochs, seed.validation_split) == (128, 30, 0.2)
    assert seed.dropout == (0.4, 0.3, 0.2)
    assert seed.deformation is None
    assert seed.ema_decay == 0


def test_recipes_are_these_and_only_best_has_teachers():
    teachers = {name: recipe.distillation is not None for name, recipe in RECIPES.items()}
    assert teachers == {"seed": False, "default": False, "best": True, "fine-tune": False}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("validation_split", -0.1),
        ("degraded", 0.6),
        ("outliers", -0.1),
        ("validation_split", 1),
        ("dropout", (0.4, 1.0, 0.2)),
        ("dropout", (0.4, -0.1, 0.2)),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("ema_decay", 1),
        ("fine_tune_share", 1.5),
    ],
)
def test_impossible_recipe_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        dataclasses.replace(RECIPES["default"], **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotation_deg", 180),
        ("scale", 1),
        ("shift_px", -1),
        ("elastic_sigma_px", 0),
        ("thickness", 1.1),
    ],
)
def test_impossible_deformation_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        dataclasses.replace(DEFORMATION, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("teachers", 0), ("views", 0), ("fine_tune_views", -1), ("temperature", 0), ("share", 1.1)],
)
def test_impossible_distillation_is_refused_by_name(field, value):
    _, distillation = RECIPES["best"].views()
    with pytest.raises(ValueError, match=f"{field}: expected"):
        dataclasses.replace(distillation, **{field: value})


def test_distillation_needs_views_to_show():
    with pytest.raises(ValueError, match="distillation: expected a deformation"):
        dataclasses.replace(RECIPES["best"], deformation=None)


def test_mild_epochs_of_a_distilled_recipe_need_views():
    _, distillation = RECIPES["best"].views()
    without = dataclasses.replace(distillation, fine_tune_views=0)
    with pytest.raises(ValueError, match="fine_tune_share: expected fine_tune_views"):
        dataclasses.replace(RECIPES["best"], distillation=without)

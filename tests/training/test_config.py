import dataclasses
import json

import pytest

from training.config import RECIPES, Deformation, Recipe

DEFORMATION = Deformation(
    rotation_deg=15, scale=0.15, shear=0.15, shift_px=2.5, elastic_px=0.5, elastic_sigma_px=3
)
DISTILLATION = RECIPES["best"].views()[1]


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        *((RECIPES["default"], *each) for each in (
            ("epochs", 0), ("batch_size", 0), ("validation_split", -0.1), ("validation_split", 1),
            ("degraded", 0.6), ("outliers", -0.1), ("dropout", (0.4, 1.0, 0.2)),
            ("dropout", (0.4, -0.1, 0.2)), ("learning_rate", -1e-3),
            ("learning_rate", float("nan")), ("ema_decay", 1), ("fine_tune_share", 1.5))),
        *((DEFORMATION, *each) for each in (
            ("rotation_deg", 180), ("scale", 1), ("shift_px", -1), ("elastic_sigma_px", 0),
            ("thickness", 1.1))),
        *((DISTILLATION, *each) for each in (
            ("teachers", 0), ("views", 0), ("fine_tune_views", -1), ("temperature", 0),
            ("share", 1.1))),
    ],
)  # fmt: skip
def test_impossible_setting_is_refused_by_name(settings, field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        dataclasses.replace(settings, **{field: value})


def test_distillation_needs_views_to_show():
    with pytest.raises(ValueError, match="distillation: expected a deformation"):
        dataclasses.replace(RECIPES["best"], deformation=None)
    with pytest.raises(ValueError, match="default has no teachers"):
        RECIPES["default"].views()
    without = dataclasses.replace(DISTILLATION, fine_tune_views=0)
    with pytest.raises(ValueError, match="fine_tune_share: expected fine_tune_views"):
        dataclasses.replace(RECIPES["best"], distillation=without)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_settings_survive_json(recipe):
    settings = json.loads(json.dumps(recipe.as_json()))
    assert type(recipe).of_json(settings) == recipe
    assert recipe.changes() == {}


@pytest.mark.parametrize("settings", [{}, {"name": "seed"}, {"fly": 1}, {"deformation": {"x": 1}}])
def test_settings_of_no_recipe_are_refused(settings):
    with pytest.raises(ValueError, match="no settings of a recipe"):
        Recipe.of_json(settings)


def test_changed_recipe_knows_its_changes():
    settings = {"units": (128, 64), "dropout": (0.2,), "learning_rate": 5e-4, "augment": "affine"}
    recipe = RECIPES["seed"].changed(settings)
    assert recipe.changes() == {
        "units": (128, 64), "dropout": (0.2, 0.2), "learning_rate": 5e-4, "augment": "affine",
    }  # fmt: skip
    assert recipe.changes_in_words() == [
        "units 128,64", "dropout 0.2,0.2", "learning_rate 0.0005", "augment affine",
    ]  # fmt: skip
    assert recipe.deformation.elastic_px == 0
    assert RECIPES["default"].changed({"augment": "none"}).deformation is None
    assert RECIPES["seed"].changed({"augment": "none"}).changes() == {}


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("seed", {"units": (128, 64)}, "units: 2 hidden layers, .* 0.4,0.3,0.2 is for 3: set drop"),
        ("seed", {"dropout": (0.1, 0.2)}, "dropout: expected a rate for each of 3 hidden layers"),
        ("seed", {"units": (0, 1, 1)}, "units: expected 1 to"),
        ("seed", {"units": (), "dropout": ()}, "dropout: expected a rate for each of 0"),
        ("best", {"augment": "none"}, "distillation: expected a deformation"),
        ("fine-tune", {"units": (64, 64, 64)}, "units: .*bundled model, 256,128,56.*64,64,64"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(name, settings, reason):
    with pytest.raises(ValueError, match=reason):
        RECIPES[name].changed(settings)

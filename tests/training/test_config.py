import dataclasses

import pytest

from training.config import RECIPES, Deformation

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

"""What a processor is known by, and which candidates are tried on it, in their order."""

import platform
from importlib import import_module

import pytest

from serving.optimising import candidates
from serving.optimising.candidates import Candidate, adds_wide, first_candidates
from serving.optimising.optimize import processor_name

WIDE = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
OTHERS = ("avx2", "avx512f", "avx512_bf16", "neon", "asimd", "sve")


def known(monkeypatch, *features, name="A processor"):
    text = f"model name\t: {name}\n" if name else ""
    for module in (candidates, import_module("serving.optimising.optimize")):
        monkeypatch.setattr(module, "processor", lambda: f"{text}flags : {' '.join(features)} x87")


@pytest.mark.parametrize("feature", [*WIDE, *OTHERS])
def test_feature_that_decides_how_bytes_are_multiplied_is_shown(feature, monkeypatch):
    known(monkeypatch, feature)
    assert adds_wide() == (feature in WIDE)
    assert processor_name("cpu") == f"A processor ({feature}), cpu"


def test_features_have_one_order_and_a_processor_may_have_no_name(monkeypatch):
    known(monkeypatch, "sve", "amx_int8", "avx2", name="")
    assert processor_name("cuda") == f"{platform.machine()} (avx2, amx_int8, sve), cuda"
    known(monkeypatch, name="  Old one ")
    assert processor_name("cpu") == "Old one (no features known), cpu"


SEVEN = "int8 u8, 7-bit weights"


@pytest.mark.parametrize(
    ("features", "is_batched", "is_portable", "expected"),
    [
        (["avx_vnni"], True, False, [
            "int8 u8", "int8 u8, percentile", SEVEN, f"{SEVEN}, percentile",
            "int8 u8, products only", "int8 u8, percentile, products only", "8-bit weights",
            "int8 s8",
        ]),
        (["avx_vnni"], False, False, [
            "int8 u8", "int8 u8, percentile", SEVEN, f"{SEVEN}, percentile",
            "int8 u8, products only", "int8 u8, percentile, products only", "8-bit weights",
            "dynamic int8", "int8 s8",
        ]),
        *((features, True, is_portable, [
            SEVEN, f"{SEVEN}, percentile", f"{SEVEN}, products only",
            f"{SEVEN}, percentile, products only", "8-bit weights", "int8 s8, 7-bit weights",
        ]) for features, is_portable in ((["avx_vnni"], True), (["avx2"], False))),
    ],
)  # fmt: skip
def test_candidates_have_weights_that_the_processor_adds(
    features, is_batched, is_portable, expected, monkeypatch
):
    known(monkeypatch, *features)
    found = first_candidates(is_batched=is_batched, is_portable=is_portable)
    assert [*map(str, found)] == expected


def test_candidate_says_what_stays_as_it_is():
    plain = Candidate(kind="int8")
    assert (plain.activations, plain.calibration, plain.kept) == ("u8", "minmax", ())
    assert (plain.has_reduced_range, plain.only_products) == (False, False)
    assert str(plain.keeping(["a"])) == "int8 u8, 1 layer fp32"
    assert str(plain.keeping(["a", "b"])) == "int8 u8, 2 layers fp32"
    assert plain.keeping(["a"]).kept == ("a",)

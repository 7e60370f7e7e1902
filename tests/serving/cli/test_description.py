"""The output of `info`, compared whole."""

from dataclasses import replace

import pytest

from serving.cli.description import as_text, facts_of, of_server
from serving.tensors import Tensor
from tests.support.described import INFO, PLAIN

FEW = replace(
    PLAIN,
    inputs=(Tensor("x", "FP32", (-1, 4), names=("batch",)),),
    outputs=(Tensor("y", "INT64", (-1,)),),
)
ALL = replace(
    INFO,
    not_served={"4": "corrupt", "1": "older"},
    inputs=FEW.inputs,
    outputs=FEW.outputs,
    in_parts=False,
    pictures=FEW.pictures,
    device="cuda",
)


def test_each_fact_that_is_known_is_shown():
    assert facts_of(ALL) == {
        "name": "m", "version": "3", "versions": ["3", "2"], "default_version": "2",
        "canary_version": "3", "not_served": ["4: corrupt", "1: older"], "device": "cuda",
        "precision": "int8", "optimized": "int8 u8, of mine version 1",
        "batching": "row independence proved", "max_batch_size": 17, "max_request_rows": 99,
        "max_message_bytes": 12_345, "test_accuracy": 0.875, "labels": ["cat", "dog"],
        "inputs": ["x FP32 [batch, 4]"], "outputs": ["y INT64 [N]"],
    }  # fmt: skip
    assert facts_of(FEW) == {
        "name": "m", "version": "1", "versions": ["1"], "default_version": "1",
        "max_batch_size": 0, "inputs": ["x FP32 [batch, 4]"], "outputs": ["y INT64 [N]"],
    }  # fmt: skip


def test_lines_have_a_name_and_what_it_is():
    facts = {"max_batch_size": 17, "labels": ["cat", "dog"]}
    lines = "max batch size      17\nlabels              cat, dog"
    assert as_text(facts, 0) == lines
    assert as_text(facts, 1) == f"\n{lines}"


class Client:
    """Of a server with two models, one of which has two versions."""

    def models(self):
        return ["a", "b"]

    def describe(self, name, version=""):
        versions = ("3", "2") if name == "a" else ("1",)
        return replace(INFO, name=name, version=version or versions[0], versions=versions)


@pytest.mark.parametrize(
    ("given", "described"),
    [
        ((), ["a 3", "a 2", "b 1"]), (("a",), ["a 3", "a 2"]), (("b",), ["b 1"]),
        (("a", "2"), ["a 2"]), (("a", "3"), ["a 3"]), ((None, "2"), ["a 2", "b 2"]),
    ],
)  # fmt: skip
def test_versions_of_a_server_are_all_or_the_one_that_is_named(given, described):
    found = of_server(Client(), *given)
    assert [f"{each['name']} {each['version']}" for each in found] == described

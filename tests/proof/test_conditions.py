"""Each condition of the rules: tests/proof/rules.tsv, graphs and what is proved of them.

A line is a section, a graph in ONNX's own text syntax, its inputs (x float[N,4] if none), the
version of the operators (18 if none), and what the proof knows of the tensor t, or of y if there is
none, or why it ends. `i[1,2]` is a vector of int64, `f[1,2]` of float32; `i:1`, `f:1` and `b:1` are
scalars, and `ones[2,3]` is a tensor of ones.
"""

import math
import re
from pathlib import Path

import pytest

from serving.model.onnx_runtime import runtime
from serving.proof import Mixes, prove
from serving.proof.check import NotRun
from serving.proof.onnx_file import parse_model
from tests.proof.corpus import shown
from tests.proof.models import RULES, graph
from tests.proof.test_check import checked

FILE = Path(__file__).parent / "rules.tsv"
_TYPES = {"i": "int64", "f": "float", "b": "bool"}
_CONSTANT = re.compile(r"\b(?:([if])\[([-\d.,]*)\]|([ifb]):(-?[\d.]+)|ones\[([\d,]+)\])")


def read():
    """Return the table by section: graph, inputs, version, expected."""
    sections = {}
    for line in FILE.read_text("utf-8").splitlines():
        section, *row = line.split("\t")
        sections.setdefault(section, []).append(row)
    return sections


SECTIONS = read()


def model_of(body, inputs="", version=""):
    """Return the model of a line."""
    constants = {}

    def named(match):
        kind, vector, scalar_kind, scalar, shape = match.groups()
        if shape:
            ones = ",".join(["1"] * math.prod(map(int, shape.split(","))))
            text = f"float[{shape}] {{{ones}}}"
        elif scalar_kind:
            text = f"{_TYPES[scalar_kind]} {{{scalar}}}"
        else:
            text = f"{_TYPES[kind]}[{len(vector.split(','))}] {{{vector}}}"
        return constants.setdefault(text, f"k{len(constants)}")

    body = _CONSTANT.sub(named, body)
    head = "".join(f"{name} = Constant<value = {text}>(); " for text, name in constants.items())
    return graph(head + body, inputs or "float[N,4] x", opset=int(version or 18))


def described(model):
    """Return what is proved of t or y, or the reason why the proof ends, without names."""
    try:
        values = prove(parse_model(model.SerializeToString()), RULES).values
    except Mixes as err:
        return str(err).rpartition(" (")[2].replace("):", ":", 1)
    return shown(values["t" if "t" in values else "y"])


@pytest.mark.parametrize("section", SECTIONS)
def test_proof_knows_this_of_a_graph(section):
    wrong = [
        f"{body} of {inputs}: {found}, expected {expected}"
        for body, inputs, version, expected in SECTIONS[section]
        if (found := described(model_of(body, inputs, version))) != expected
    ]
    assert not wrong


@pytest.mark.slow
def test_runs_agree_with_what_the_proof_knows():
    state = runtime().capi.onnxruntime_pybind11_state
    unable = NotRun, state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented
    num_compared = num_proved = 0
    for row in (row for rows in SECTIONS.values() for row in rows):
        *given, expected = row
        if expected.startswith(("rows", "of")):
            num_proved += 1
            try:
                num_compared += checked(model_of(*given)).num_tensors > 0
            except unable:  # ONNX Runtime lacks a version's operator, or refuses a shape
                continue
    assert num_compared > 0.9 * num_proved

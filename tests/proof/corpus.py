"""The verdict on each of ONNX's own test cases, any of its inputs as rows and the others constant.

    python -m tests.proof.corpus

writes them to tests/proof/verdicts.tsv: first each verdict that occurs with a name of six digits,
then for each operator, case and choice of its inputs, the name of the verdict. After a change of
the rules, or of ONNX, write it again and read the difference.
"""

import hashlib
import warnings
from functools import cache
from pathlib import Path

from onnx.backend.test.case.node import collect_testcases

from serving.proof import Mixes, prove
from serving.proof.onnx_file import parse_model
from serving.proof.sizes import ONE
from tests.proof.cases import with_rows
from tests.proof.models import RULES

FILE = Path(__file__).parent / "verdicts.tsv"


@cache
def cases():
    """ONNX's cases by the operators of their first nodes."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the functions that compute the expected outputs
        collected = collect_testcases(None)
    for case in collected:
        if case.model is not None and case.data_sets:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def verdicts(operator):
    """Return the verdict on each case that begins with an operator, by the case and its rows."""
    return {
        f"{case.name} {','.join(rows)}": verdict(model)
        for case in cases()[operator]
        for model, rows in with_rows(case)
    }


def verdict(model):
    """Return as text why rows are not proved independent, or what is proved of the outputs."""
    try:
        proof = prove(parse_model(model.SerializeToString()), RULES)
    except Mixes as err:
        return str(err).rpartition(" (")[2].replace("):", ":", 1)  # without names of tensors
    return "; ".join(shown(proof.values[each.name]) for each in model.graph.output)


def shown(value):
    """Return what is known of a tensor as text, such as `rows 0 of N,3`."""
    parts = [f"of {','.join(map(polynomial, value.shape))}"]
    if value.axis is not None:
        parts.insert(0, f"rows {value.axis}")
    if value.outer not in (None, ONE):
        parts.append(f"times {polynomial(value.outer)}")
    if value.vector is not None:
        parts.append(f"= {','.join(map(polynomial, value.vector))}")
    return " ".join([*parts, *["varies"] * value.varies])


def polynomial(size):
    """Return a size as text, such as `2 N + 1`."""
    terms = [" ".join([str(number)] * (number != 1 or not names) + list(names))
             for names, number in size.terms]  # fmt: skip
    return " + ".join(terms) or "0"


def named(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def read():
    """Return the verdicts that are kept, by operator, and by the case and its rows."""
    texts, kept = {}, {}
    for line in FILE.read_text("utf-8").splitlines():
        first, *rest = line.split("\t")
        if len(rest) == 1:
            texts[first] = rest[0]
            continue
        case, *choices = rest
        for rows, name in (each.split(" ") for each in choices):
            kept.setdefault(first, {})[f"{case} {rows}"] = texts[name]
    return kept


def write():
    texts, lines = set(), []
    for operator in sorted(cases()):
        choices = {}
        for key, text in verdicts(operator).items():
            case, rows = key.split(" ")
            choices.setdefault(case, []).append(f"{rows} {named(text)}")
            texts.add(f"{named(text)}\t{text}")
        lines += ["\t".join([operator, case, *each]) for case, each in sorted(choices.items())]
    FILE.write_text("\n".join([*sorted(texts), *lines]) + "\n", "utf-8")


if __name__ == "__main__":
    write()

"""The first example of the library's README runs."""

import re
from pathlib import Path
from typing import Any

from serving import proof


def test_first_example_compares_a_proof_with_runs(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    text = (Path(proof.__file__).parent / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(example, names)
    assert names["compared"].num_tensors > 1
    assert names["compared"].num_omitted == 0
    assert re.fullmatch(r"\d+ tensors are as .* in \d+ runs\n", capsys.readouterr().out)


def test_names_of_the_package_are_there():
    assert all(getattr(proof, name).__name__ == name for name in proof.__all__)
    assert [*proof.__all__] == [
        "Check", "Comparison", "Graph", "Mixes", "NotRun", "Proof", "Session", "Size", "Value",
        "parse_model", "prove",
    ]  # fmt: skip

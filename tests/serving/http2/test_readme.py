"""The example of the package's README runs."""

import re
from pathlib import Path
from typing import Any

from serving import http2


def test_example_is_answered():
    text = (Path(http2.__file__).parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert [value for kind, _, value, _ in names["answers"] if kind == http2.events.DATA] == [
        b"answer to question"
    ]


def test_names_of_the_package_are_few_and_there():
    assert len(http2.__all__) == 6
    assert all(hasattr(http2, name) for name in http2.__all__)

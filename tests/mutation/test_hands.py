"""The slips of each hand, and no others: what the linter or mypy finds is none."""

from textwrap import dedent

import pytest

from tests.mutation.hands import HANDS, optional_arguments, slipped, slips

CASES = {
    "left_out": (
        """
        def f(self, rows):
            "What it does."
            only = rows.first
            if not rows:
                return None
            self.count(rows)
            return only
        """,
        [
            "    if not rows:\n        return None\n",
            "        return None\n",  # the body of the `if` becomes `pass`
            "    self.count(rows)\n",
        ],
    ),
    "swapped": (
        """
        def f(self, rows):
            first = rows[0]
            second = rows[1]
            self.close(first)
            self.count(second)
        """,
        ["    self.close(first)\n    self.count(second)\n"],
    ),
    "moved": (
        """
        def f(self, rows):
            self.count(rows)
            if not rows:
                return
            self.close()
        """,
        ["    self.count(rows)\n    if not rows:\n        return\n"],
    ),
    "keyword": (
        """
        def take(rows, late_s=1.0, *, kind):
            pass
        def f(rows):
            take(rows, late_s=2.0, kind="rows")
        """,
        ["late_s=2.0, "],
    ),
    "field": ("def f(a, b):\n    return {'id': a, **b}\n", ["'id': a, "]),
    "row": ("TABLE = {1: 'one', 2: 'two'}\n__all__ = ['a', 'b']\n", ["1: 'one', ", "2: 'two'"]),
    "unit": ("LATE_S = 5\nNUM = 5\ndef f(at_s):\n    return at_s * 1e3 + 7\n", ["5", "1e3"]),
    "guard": (
        """
        def f(self):
            with self._lock:
                try:
                    self.run()
                finally:
                    self.end()
        """,
        ["with self._lock:", "try:\n            self.run()\n        finally:"],
    ),
    "default": ("def f(a=True, b=3, c='x'):\n    return a.get(b, 0)\n", ["True", "3", "0"]),
    "reset": (
        """
        class C:
            def __init__(self):
                self.x = 0
            def f(self):
                self.x = 0
                self.y = self.x
                self.z.clear()
        """,
        ["        self.x = 0\n        self.y", "        self.z.clear()\n"],
    ),
}
"""For each hand a text, and the pieces of it that a slip of that hand changes."""


def test_each_hand_has_a_case():
    assert {hand.__name__ for hand in HANDS} == {*CASES}


@pytest.mark.parametrize("hand", CASES)
def test_a_hand_changes_these_pieces_and_no_others(hand):
    text, pieces = CASES[hand]
    source = dedent(text).lstrip()
    found = [slip for slip in slips(source, optional_arguments([source])) if slip.operator == hand]
    lines = source.splitlines()
    changed = {}
    for slip in found:
        after = slipped(source, slip)
        compile(after, "slip", "exec")
        assert after != source
        changed.setdefault("\n".join(lines[slip.first - 1 : slip.last]), []).append(after)
    assert len(changed) <= len(pieces)
    for piece in pieces:
        assert any(piece.strip() in old or old in piece for old in changed), (
            f"{hand} leaves {piece!r} as it is"
        )


@pytest.mark.parametrize(
    ("hand", "text", "after"),
    [
        ("moved", "def f(a):\n    a.b()\n    if a:\n        return\n    a.c()\n",
         "def f(a):\n    if a:\n        return\n    a.b()\n    a.c()\n"),
        ("swapped", "def f(a):\n    a.b()\n    # why\n    a.c()\n",
         "def f(a):\n    a.c()\n    # why\n    a.b()\n"),
        ("guard", "def f(a):\n    with a.lock:\n        a.b()\n",
         "def f(a):\n    if True:\n        a.b()\n"),
        ("guard", "def f(a):\n    try:\n        a.b()\n    finally:\n        a.c()\n",
         "def f(a):\n    if True:\n        a.b()\n    if True:\n        a.c()\n"),
        ("field", "def f(a):\n    return {\n        'a': 1,\n    }\n",
         "def f(a):\n    return {\n    }\n"),
        ("keyword", "def f(a):\n    a(b=1)\n", "def f(a):\n    a()\n"),
        ("keyword", "def f(a):\n    a(*a, b=1)\n", "def f(a):\n    a(*a)\n"),
    ],
    ids=["moved", "swapped", "lock", "finally", "field", "keyword alone", "keyword last"],
)  # fmt: skip
def test_a_slip_reads_so(hand, text, after):
    [slip] = [slip for slip in slips(text, {}) if slip.operator == hand]
    assert slipped(text, slip) == after

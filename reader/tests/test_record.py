"""Records of two versions: answers that are equal but for rounding, and others."""

from pathlib import Path

from experiments.handwriting.record import as_line, compare

PAGE = {"page": "dates 0", "numbers": [{"text": "12/05", "probability": 0.5, "image": b"ink"}]}


def test_compare_tells_other_answers_from_rounding(tmp_path: Path) -> None:
    rounded = {"page": "dates 0", "numbers": [{**PAGE["numbers"][0], "probability": 0.25}]}  # type: ignore[dict-item]
    other = {"page": "dates 1", "numbers": []}
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text(f"{as_line(PAGE)}\n{as_line({**PAGE, 'page': 'dates 1'})}\n")
    after.write_text(f"{as_line(rounded)}\n{as_line(other)}\n")
    assert compare(before, after) == (["dates 1"], 0.25)
    assert compare(before, before) == ([], 0.0)

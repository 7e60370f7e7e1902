"""Drawn by mouse, finger and keyboard: one answer with one confidence, and none for scrawls."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.web.strokes import draw_by_finger, draw_by_mouse, draw_strokes, strokes_of

pytestmark = pytest.mark.web


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("draw", [draw_by_mouse, draw_by_finger])
def test_drawn_digit_is_read(draw: Any, digit: int, page: Page) -> None:
    draw(page, digit)
    expect(page.locator("#answer")).to_have_text(str(digit))
    answers = page.locator("#bars li").filter(has_not_text="no digit")
    expect(answers).to_have_count(10)
    expect(page.locator("#bars li.first span").first).to_have_text(str(digit))
    page.click("#clear")
    expect(page.locator("#answer")).to_have_text("")


@pytest.mark.parametrize("number", ["42", "907", "1358"])
def test_drawn_number_is_read(number: str, page: Page) -> None:
    height = 1.1 / len(number)
    for index, digit in enumerate(number):
        left = 0.06 + index * 0.93 / len(number)
        draw_strokes(page, strokes_of(int(digit), left, 0.3, height * 0.8))
    expect(page.locator("#answer")).to_have_text(number)
    expect(page.locator("#note")).to_contain_text("%")
    assert page.evaluate("found.map((digit) => digit.digit).join('')") == number
    lefts = page.evaluate("found.map((digit) => digit.box.left)")
    assert lefts == sorted(lefts)
    page.click("#clear")
    expect(page.locator("#answer")).to_have_text("")
    assert page.evaluate("found.length") == 0


@pytest.mark.parametrize("undo", ["click", "Control+z", "Meta+z"])
def test_undo_takes_the_last_stroke_back(undo: str, page: Page) -> None:
    answer, note = page.locator("#answer"), page.locator("#note")
    for index, digit in enumerate((1, 7, 0)):
        draw_strokes(page, strokes_of(digit, 0.06 + 0.31 * index, 0.3, 0.3))
    for left in ("170", "17", "1"):
        expect(answer).to_have_text(left)
        expect(note).to_contain_text("% sure")
        page.click("#undo") if undo == "click" else page.keyboard.press(undo)
    expect(answer).to_have_text("")
    expect(note).to_have_text("The answer appears here, while you draw.")


SCRAWLS = {
    "zigzag": [[(0.2 + 0.1 * step, 0.3 + 0.3 * (step % 2)) for step in range(7)]],
    "cross": [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]],
    "plus": [[(0.5, 0.2), (0.5, 0.8)], [(0.2, 0.5), (0.8, 0.5)]],
    "triangle": [[(0.2, 0.8), (0.5, 0.2), (0.8, 0.8), (0.2, 0.8)]],
    "A": [[(0.3, 0.8), (0.5, 0.2), (0.7, 0.8)], [(0.4, 0.6), (0.6, 0.6)]],
}


@pytest.mark.parametrize("name", SCRAWLS)
def test_scrawl_is_no_digit(name: str, page: Page) -> None:
    draw_strokes(page, SCRAWLS[name])
    page.wait_for_load_state("networkidle")  # the answer to a part of it may differ
    expect(page.locator("#note")).to_have_text("Nothing here looks like digits.")
    expect(page.locator("#answer")).to_have_text("")
    expect(page.locator("#details")).to_be_hidden()


def test_each_digit_of_a_number_has_its_own_certainty(page: Page) -> None:
    page.click("#example")
    expect(page.locator("#answer")).to_have_text("42")
    assert page.locator("#bars li span:first-child").all_inner_texts() == ["4", "2"]
    confidences = page.locator("#bars li span:last-child").all_inner_texts()
    assert all(text.endswith(" %") for text in confidences)


def test_certainty_of_one_digit_is_its_bar(page: Page) -> None:
    draw_strokes(page, strokes_of(4, left=0.3, height=0.5))
    expect(page.locator("#answer")).to_have_text("4")
    # Read at once: the answer to a part of the drawing may come first, be doubted, and be replaced.
    note, share = page.evaluate(
        """["#note", "#bars .first span:last-child"].map(
            (selector) => document.querySelector(selector).textContent)"""
    )
    assert note.startswith((f"{share} sure", f"{share}: I am not sure"))


def test_keyboard_draws(page: Page) -> None:
    page.focus("#canvas")
    for key in [*["ArrowUp"] * 3, " ", *["ArrowDown"] * 20, " "]:
        page.keyboard.press(key)
    expect(page.locator("#answer")).to_have_text("1")

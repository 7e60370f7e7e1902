"""The page to draw a digit on, of a server to which no other application adds one."""

import sys

import pytest
from playwright.sync_api import expect

from digit_classifier import PRETRAINED
from tests.support.servers import started
from tests.web.strokes import draw_by_mouse

_ALONE = """
import sys
from serving import entry_points
every = entry_points.find
entry_points.find = lambda group: [
    each for each in every(group) if each.module.startswith("digit_classifier")
]
from serving.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def url():
    ports = ("--port=0", "--http-port=0", "--metrics-port=0")
    command = [sys.executable, "-c", _ALONE, "serve", "--models", str(PRETRAINED), *ports]
    with started(command) as server:
        yield server.facts["http"]


@pytest.mark.parametrize("digit", [0, 3, 7])
def test_drawn_digit_has_its_probabilities(digit, page):
    draw_by_mouse(page, digit)
    expect(page.locator("#answer")).to_have_text(str(digit))
    expect(page.locator("#note")).to_contain_text("% sure")
    expect(page.locator("#bars li")).to_have_count(10)
    expect(page.locator("#seen")).to_be_visible()
    page.click("#clear")
    expect(page.locator("#answer")).to_have_text("")


def test_example_is_a_digit_and_the_code_asks_for_one(page):
    page.click("#example")
    expect(page.locator("#answer")).to_have_text("4")
    for command in ("curl", "python"):
        assert "/v1/digits" in (page.locator(f"#{command}").text_content() or "")


def test_what_is_no_picture_is_refused_in_words(page, tmp_path):
    files = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    page.set_input_files("#file", files)
    expect(page.locator("#note")).to_contain_text("expected a picture")


def test_probabilities_add_up_with_that_of_no_digit(page):
    page.click("#example")
    expect(page.locator("#answer")).to_have_text("4")
    shares = [0.0, 0.961, *[0.0] * 8]
    page.evaluate(f"showClasses({shares}, 1)")
    rows = page.locator("#bars li")
    expect(rows).to_have_count(11)
    expect(rows.last).to_contain_text("no digit")
    expect(rows.last).to_contain_text("3.9 %")


def test_empty_page_says_where_to_draw_and_where_the_answer_will_be(page):
    expect(page.locator("#note")).to_have_text("The answer appears here, while you draw.")
    ink = "canvas.getContext('2d').getImageData(0, 280, 640, 80).data.some((level) => level)"
    assert page.evaluate(ink)
    page.click("#example")
    page.click("#clear")
    expect(page.locator("#note")).to_have_text("The answer appears here, while you draw.")

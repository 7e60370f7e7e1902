"""The page to draw on, in Chromium: by mouse, finger, keyboard and file, and without a server."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect, sync_playwright

from handwriting.drawing import STROKES, curve
from serving.model.repository import PRETRAINED
from tests.support.servers import running_server

CHROMIUM = shutil.which("chromium")
TOKEN = "token-0123456789abcdef"


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    assert CHROMIUM, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    """A page that may ask its own server only, and log no error."""
    context = browser.new_context(has_touch=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    strangers: list[str] = []
    errors: list[str] = []

    def check(route: Route) -> None:
        if not route.request.url.startswith(url):
            strangers.append(route.request.url)
        route.continue_()

    page.route("**/*", check)
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert not strangers
    assert not errors


def strokes_of(
    digit: int, left: float = 0.2, top: float = 0.12, height: float = 10 / 13
) -> list[list[tuple[float, float]]]:
    """Give a digit's strokes as points from 0 to 1."""
    lines = []
    for line in STROKES[digit][0].split("|"):
        points = np.array([[float(v) for v in point.split(",")] for point in line.split()])
        path = curve(points * [0.13 * height, 0.1 * height] + [left, top], step=0.05 * height)
        lines.append([(float(x), float(y)) for x, y in path])
    return lines


def place_of(page: Page) -> tuple[float, float, float]:
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    return box["x"], box["y"], box["width"]


def draw_by_mouse(page: Page, digit: int) -> None:
    draw_strokes(page, strokes_of(digit))


def draw_strokes(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    left, top, side = place_of(page)
    for stroke in strokes:
        page.mouse.move(left + stroke[0][0] * side, top + stroke[0][1] * side)
        page.mouse.down()
        for x, y in stroke[1:]:
            page.mouse.move(left + x * side, top + y * side)
        page.mouse.up()


def draw_by_finger(page: Page, digit: int) -> None:
    left, top, side = place_of(page)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": left + x * side, "y": top + y * side} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    for stroke in strokes_of(digit):
        touch("touchStart", stroke[0])
        for point in stroke[1:]:
            touch("touchMove", point)
        touch("touchEnd")


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("draw", [draw_by_mouse, draw_by_finger])
def test_drawn_digit_is_read(draw: Any, digit: int, page: Page) -> None:
    draw(page, digit)
    expect(page.locator("#answer")).to_have_text(str(digit))
    expect(page.locator("#bars li")).to_have_count(10)
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


def test_undo_takes_the_last_stroke_back(page: Page) -> None:
    draw_by_mouse(page, 1)
    expect(page.locator("#answer")).to_have_text("1")
    draw_by_mouse(page, 0)
    expect(page.locator("#answer")).not_to_have_text("1")
    page.click("#undo")
    page.click("#undo") if len(strokes_of(0)) > 1 else None
    expect(page.locator("#answer")).to_have_text("1")


def test_keyboard_draws(page: Page) -> None:
    page.focus("#canvas")
    for key in [*["ArrowUp"] * 3, " ", *["ArrowDown"] * 20, " "]:
        page.keyboard.press(key)
    expect(page.locator("#answer")).to_have_text("1")


def test_picture_from_a_file_is_read(page: Page) -> None:
    image = Image.new("L", (300, 300), 255)
    for stroke in strokes_of(7):
        for x, y in curve(np.array(stroke) * 300, 0.5):
            image.paste(0, (int(x) - 8, int(y) - 8, int(x) + 8, int(y) + 8))
    file = io.BytesIO()
    image.save(file, "PNG")
    files = {"name": "seven.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#file", files)  # type: ignore[arg-type]
    expect(page.locator("#answer")).to_have_text("7")


def test_what_is_no_picture_is_refused_in_words(page: Page) -> None:
    files = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    with page.expect_response("**/v1/numbers*") as answer:
        page.set_input_files("#file", files)  # type: ignore[arg-type]
    assert answer.value.status == 200
    expect(page.locator("#note")).to_contain_text("expected a picture")


def test_less_sure_than_asked_says_so(page: Page) -> None:
    page.locator("#threshold").fill("99")
    draw_by_mouse(page, 1)
    page.click("#clear")
    for _ in range(3):
        draw_by_mouse(page, 4)
        draw_by_mouse(page, 9)
    expect(page.locator("#note")).to_contain_text("not sure")


def test_labels_reach_a_screen_reader(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_count(1)
    for name in ("Undo", "Clear", "Use it"):
        assert page.get_by_role("button", name=name, include_hidden=True).count() == 1
    assert page.get_by_role("img", name="Drawing area").count() == 1
    assert page.locator("input:not([id])").count() == 0
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('input')].filter((i) => !i.labels.length).map((i) => i.id)"
    )
    assert unlabelled == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits(width: int, scheme: Any, page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    draw_by_mouse(page, 3)
    expect(page.locator("#answer")).to_have_text("3")
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    page.goto(page.url + "docs")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_page_says_when_the_server_is_gone_or_wants_a_token(browser: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    options = ("--http-port", "0", "--token-file", str(tokens))
    with running_server(PRETRAINED, *options) as server:
        page = browser.new_page()
        page.goto(server.facts["http"])
        draw_by_mouse(page, 1)
        expect(page.locator("#note")).to_contain_text("token")
        page.fill("#token", TOKEN)
        page.click("#access button")
        expect(page.locator("#answer")).to_have_text("1")
        server.stop()
        draw_by_mouse(page, 0)
        expect(page.locator("#note")).to_contain_text("does not answer")
        page.close()

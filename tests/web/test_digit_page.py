"""The page to draw a digit on."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from digit_classifier import PRETRAINED
from tests.support.pictures.drawing import curve
from tests.support.servers import ended, running_server
from tests.web.strokes import draw_by_finger, draw_by_mouse, draw_strokes, place_of, strokes_of

TOKEN = "token-0123456789abcdef"


@pytest.mark.parametrize("digit", [0, 3, 7])
def test_drawn_digit_has_its_probabilities(digit, page):
    draw_by_mouse(page, digit)
    expect(page.locator("#answer")).to_have_text(str(digit))
    expect(page.locator("#note")).to_contain_text("% sure")
    expect(page.locator("#bars li")).to_have_count(10)
    expect(page.locator("#seen")).to_be_visible()
    expect(page.locator("#served")).to_have_text("Answered by digits, version 1.")
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


def test_empty_page_says_where_to_draw_and_where_the_answer_will_be(page):
    expect(page.locator("#note")).to_have_text("The answer appears here, while you draw.")
    ink = "canvas.getContext('2d').getImageData(0, 280, 640, 80).data.some((level) => level)"
    assert page.evaluate(ink)
    page.click("#example")
    page.click("#clear")
    expect(page.locator("#note")).to_have_text("The answer appears here, while you draw.")


@pytest.mark.parametrize("command", ["curl", "python"])
def test_code_answers_as_the_page(command, page, tmp_path):
    draw_by_mouse(page, 1)
    expect(page.locator("#answer")).to_have_text("1")
    page.click("summary")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / download.value.suggested_filename)
    code = page.locator(f"#{command}").inner_text()
    program = ["sh", "-c", code] if command == "curl" else [sys.executable, "-c", code]
    result = ended(program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    if command == "curl":
        assert json.loads(result.stdout)["digits"][0]["digit"] == 1
    else:
        assert "'digit': 1," in result.stdout


def test_code_names_the_file_and_the_token(page):
    page.evaluate("sessionStorage.setItem('token', 'secret')")
    seven = Path(__file__).parents[2] / "docs" / "pictures" / "seven.png"
    files = {"name": "my $(seven).png", "mimeType": "image/png", "buffer": seven.read_bytes()}
    page.set_input_files("#file", files)
    expect(page.locator("#answer")).to_have_text("7")
    for command in ("curl", "python"):
        code = page.locator(f"#{command}").text_content()
        assert "my_seven_.png" in code
        assert "secret" not in code
        assert "TOKEN" in code


def test_page_says_that_it_needs_javascript(page):
    words = page.locator("noscript").text_content()
    assert "needs JavaScript" in words
    assert "curl" in words


def test_picture_from_a_file_is_read(page):
    image = Image.new("L", (300, 300), 255)
    for stroke in strokes_of(7):
        for x, y in curve(np.array(stroke) * 300, 0.5):
            image.paste(0, (int(x) - 8, int(y) - 8, int(x) + 8, int(y) + 8))
    file = io.BytesIO()
    image.save(file, "PNG")
    files = {"name": "seven.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#file", files)
    expect(page.locator("#answer")).to_have_text("7")


def test_finger_scrolls_beside_the_canvas(browser, url):
    phone = {"width": 390, "height": 844}
    page = browser.new_page(viewport=phone, has_touch=True, is_mobile=True)
    page.goto(url)
    left, _, side = place_of(page)
    assert left >= 24
    assert left + side <= phone["width"] - 24
    page.close()


def test_labels_reach_a_screen_reader(page):
    expect(page.get_by_role("status")).to_have_count(1)
    for name in ("Undo", "Clear", "Use it"):
        assert page.get_by_role("button", name=name, include_hidden=True).count() == 1
    assert page.get_by_role("img", name="Drawing area").count() == 1
    assert page.locator("input:not([id])").count() == 0
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('input')].filter((i) => !i.labels.length).map((i) => i.id)"
    )
    assert unlabelled == []


@pytest.mark.parametrize(
    ("width", "height"), [(390, 900), (1280, 900), (844, 390), (1280, 400), (640, 700)]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits(width, height, scheme, page, tmp_path):
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    draw_by_mouse(page, 3)
    expect(page.locator("#answer")).to_have_text("3")
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    for name in ("#canvas", "#clear", "#note"):  # without scrolling
        expect(page.locator(name)).to_be_in_viewport(ratio=1)
    page.screenshot(path=tmp_path / f"{scheme}-{width}x{height}.png", full_page=True)


def test_page_says_when_the_server_is_gone_or_wants_a_token(browser, tmp_path):
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


@pytest.mark.parametrize("draw", [draw_by_mouse, draw_by_finger])
def test_drawing_takes_mouse_and_finger(draw, page):
    draw(page, 2)
    expect(page.locator("#answer")).to_have_text("2")


@pytest.mark.parametrize("undo", ["click", "Control+z", "Meta+z"])
def test_undo_takes_the_last_stroke_back(undo, page):
    draw_by_mouse(page, 1)
    draw_strokes(page, [[(0.75, 0.2), (0.75, 0.8)]])
    expect(page.locator("#note")).to_contain_text("expected one digit")
    for answer, note in (("1", "% sure"), ("", "The answer appears here, while you draw.")):
        page.click("#undo") if undo == "click" else page.keyboard.press(undo)
        expect(page.locator("#answer")).to_have_text(answer)
        expect(page.locator("#note")).to_contain_text(note)


def test_keyboard_draws(page):
    page.focus("#canvas")
    for key in [*["ArrowUp"] * 3, " ", *["ArrowDown"] * 20, " "]:
        page.keyboard.press(key)
    expect(page.locator("#answer")).to_have_text("1")

"""The page to draw on, in Chromium: its windows, files and code lines, and without a server."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from digit_classifier import PRETRAINED
from experiments.synthetic.drawing import curve
from tests.support.servers import ended, running_server
from tests.web.strokes import draw_by_mouse, place_of, strokes_of

pytestmark = pytest.mark.web

TOKEN = "token-0123456789abcdef"


def test_example_fills_the_canvas(page: Page) -> None:
    page.click("#example")
    sides = page.evaluate("[0, 1].map((s) => strokes.flat().map((p) => p[s]))")
    widths = [max(side) - min(side) for side in sides]
    assert widths[0] >= 500
    assert widths[1] >= 380


@pytest.mark.parametrize("command", ["curl", "python"])
def test_code_answers_as_the_page(command: str, page: Page, tmp_path: Path) -> None:
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
        (number,) = json.loads(result.stdout)["pictures"][0]["numbers"]
        assert number["text"] == "1"
    else:
        assert result.stdout.split()[0] == "1"


def test_code_names_the_file_and_the_token(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('token', 'secret')")
    seven = Path(__file__).parents[2] / "docs" / "pictures" / "seven.png"
    files = {"name": "my $(seven).png", "mimeType": "image/png", "buffer": seven.read_bytes()}
    page.set_input_files("#file", files)  # type: ignore[arg-type]
    expect(page.locator("#answer")).to_have_text("7")
    for command in ("curl", "python"):
        code = page.locator(f"#{command}").text_content() or ""
        assert "my_seven_.png" in code
        assert "secret" not in code
        assert "TOKEN" in code


def test_page_says_that_it_needs_javascript(page: Page) -> None:
    words = page.locator("noscript").text_content() or ""
    assert "needs JavaScript" in words
    assert "curl" in words


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


def test_finger_scrolls_beside_the_canvas(browser: Any, url: str) -> None:
    phone = {"width": 390, "height": 844}
    page = browser.new_page(viewport=phone, has_touch=True, is_mobile=True)
    page.goto(url)
    left, _, side = place_of(page)
    assert left >= 24
    assert left + side <= phone["width"] - 24
    page.close()


def contrast(*colours: list[int]) -> float:
    """Return the ratio of two colours' luminances, as WCAG 2.2 defines it."""
    shares = np.array([colour[:3] for colour in colours]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return float(light / dark)


@pytest.mark.parametrize("paper", [0, 128, 255])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_of_boxes_have_contrast(scheme: Any, paper: int, page: Page) -> None:
    page.emulate_media(color_scheme=scheme)
    page.click("#example")
    expect(page.locator("#answer")).to_have_text("42")
    ground, letter = page.evaluate(
        """(paper) => {
        context.fillStyle = `rgb(${paper} ${paper} ${paper})`;
        context.fillRect(0, 0, canvas.width, canvas.height); // as a photo is behind the boxes
        const pixel = (x, y) => [...context.getImageData(x, y, 1, 1).data];
        let colours;
        context.fillText = (text, x, y) => {
            const ground = pixel(x, y - 8);
            context.fillRect(0, 0, 1, 1);
            colours = [ground, pixel(0, 0)];
        };
        reader.paint();
        return colours;
    }""",
        paper,
    )
    assert contrast(ground, letter) >= 4.5


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


@pytest.mark.parametrize(
    ("width", "height"), [(390, 900), (1280, 900), (844, 390), (1280, 400), (640, 700)]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits(width: int, height: int, scheme: Any, page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    draw_by_mouse(page, 3)
    expect(page.locator("#answer")).to_have_text("3")
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    for name in ("#canvas", "#clear", "#note"):  # without scrolling
        expect(page.locator(name)).to_be_in_viewport(ratio=1)
    page.screenshot(path=tmp_path / f"{scheme}-{width}x{height}.png", full_page=True)
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

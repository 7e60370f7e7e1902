"""Take the screenshots of the documentation: `make screenshots`."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from serving import Server
from tests.web.strokes import draw_by_mouse

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SIZE = {"width": 1000, "height": 665}
SENTIMENT = FOLDER.parent / "examples" / "sentiment"
"""The first example of the page on handlers: a model, its words and the handler."""


def drawn_digit(page: Page, url: str) -> None:
    """Draw a 3 and wait for the answer."""
    page.goto(f"{url}/draw")
    draw_by_mouse(page, 3)
    expect(page.locator("#answer")).to_have_text("3")
    expect(page.locator("#seen")).to_be_visible()


def models_page(page: Page, url: str) -> None:
    """Send a handler's form."""
    page.goto(f"{url}/models")
    page.locator("textarea").first.fill("a good film")
    page.get_by_role("button", name="Send").first.click()
    expect(page.get_by_text("0.88", exact=False).first).to_be_visible()


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open a page of the documentation's size."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("screenshots need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(20_000)
        yield page
        browser.close()


def main() -> None:
    """Start the servers and write each picture."""
    expect.set_options(timeout=20_000)
    with browser_page() as page:
        with Server() as server:
            drawn_digit(page, server.http_address)
            page.screenshot(path=FOLDER / "page.png")
        model, handler = SENTIMENT / "sentiment.onnx", SENTIMENT / "sentiment.py"
        with Server(model, handler=str(handler)) as server:
            models_page(page, server.http_address)
            page.screenshot(path=FOLDER / "models.png")
    print(f"wrote 2 pictures in {FOLDER}")


if __name__ == "__main__":
    main()

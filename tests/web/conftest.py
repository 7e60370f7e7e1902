"""A server with the page, and Chromium; `make test-web` runs this folder, `make test` does not."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from digit_classifier import PRETRAINED
from tests.support.servers import running_server

_CHROMIUM = shutil.which("chromium")
expect.set_options(
    timeout=20_000
)  # the first picture starts processes, and the machine may be busy


@pytest.fixture(scope="package")
def url():
    with running_server(PRETRAINED, "--http-port", "0") as server:
        yield server.facts["http"]


@pytest.fixture(scope="package")
def browser():
    assert _CHROMIUM, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """A page that may ask its own server only, and log no error."""
    context = browser.new_context(has_touch=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    strangers: list[str] = []
    errors: list[str] = []

    def check(route):
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

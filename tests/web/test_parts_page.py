"""The page of models shows an answer in parts as it comes, in Chromium."""

import pytest
from playwright.sync_api import expect

import serving
from tests.serving.handlers.conftest import Gate, named


@pytest.fixture(scope="module")
def url():
    with serving.Server(handler=named(story="Story"), handler_processes=1) as server:
        yield f"http://{server.http_address}"


def test_parts_are_shown_as_they_come(page, tmp_path):
    gate, story = Gate(tmp_path), page.locator("details.model")
    story.locator("textarea").fill(f"once wait:{gate.path} upon")
    story.locator("button").click()
    texts = story.locator(".texts")
    expect(texts).to_have_text("token: once")
    with gate.closed():
        expect(texts).to_have_text("token: once")
    expect(texts).to_contain_text("token: upon")
    expect(story.locator(".answer")).to_contain_text('["upon"]')
    expect(story.locator(".note")).to_contain_text("ms")


def test_error_behind_the_parts_is_shown(page):
    story = page.locator("details.model")
    story.locator("textarea").fill("once refuse:because")
    story.locator("button").click()
    expect(story.locator(".texts")).to_have_text("token: once")
    expect(story.locator(".note")).to_have_text("because")

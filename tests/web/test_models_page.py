"""The page of all models, in Chromium: names as hostile as they come, and the form of each."""

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.serving.http.test_models_page import HOSTILE, NAMES, TOKEN, command_of
from tests.support.servers import started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def url(folder):
    with started(command_of(folder)) as server:
        yield server.facts["http"]


def section(page, name):
    """Open a model's section."""
    found = page.locator(f"details.model:has(h2:text-is('{name}'))")
    found.evaluate("(each) => { each.open = true; }")
    return found


def test_names_are_shown_as_texts_and_run_nothing(page):
    expect(page.locator("details.model h2")).to_have_text(NAMES)
    hostile = section(page, "hostile")
    expect(hostile.locator(".inputs li code")).to_have_text(HOSTILE)
    expect(hostile.locator(".outputs li code")).to_have_text("</script><b>")
    assert "[<b>axis, 2]" in hostile.locator(".inputs").inner_text()
    assert page.locator("img").count() == 0
    assert HOSTILE in hostile.locator(".requests pre").first.text_content().replace('\\"', '"') or (
        "onerror" in hostile.locator(".requests pre").first.text_content()
    )


@pytest.mark.parametrize("name", NAMES)
def test_form_as_it_is_has_an_answer(name, page):
    model = section(page, name)
    model.locator("button").click()
    expect(model.locator(".note")).to_contain_text("ms")
    expect(model.locator(".answer")).to_be_visible()
    is_large = "too many to show" in model.locator(".answer").text_content()
    assert is_large == (name == "large")


def test_numbers_texts_and_files_are_sent(page, folder):
    iris = section(page, "iris")
    iris.locator("textarea").fill("1, 2, 3, 4")
    iris.locator("button").click()
    expect(iris.locator(".answer")).to_contain_text("y FP32 [1, 3]")
    first = iris.locator(".answer").text_content()
    np.save(folder / "row.npy", np.array([[1, 2, 3, 4]], np.float32))
    iris.locator("textarea").fill("")
    iris.locator("fieldset input").set_input_files(folder / "row.npy")
    iris.locator("button").click()
    expect(iris.locator(".answer")).to_have_text(first)
    np.save(folder / "wrong.npy", np.array([[1, 2, 3, 4]], np.float64))
    iris.locator("fieldset input").set_input_files(folder / "wrong.npy")
    iris.locator("button").click()
    expect(iris.locator(".note")).to_contain_text("expected an array of FP32")
    texts = section(page, "texts")
    texts.locator("textarea").fill('a <b>"film"')
    texts.locator("button").click()
    expect(texts.locator(".answer")).to_contain_text('["a <b>\\"film\\""]')


def test_picture_has_its_classes(page, folder):
    Image.new("RGB", (300, 200), (20, 200, 30)).save(folder / "green.png")
    flowers = section(page, "flowers")
    assert page.locator(".picture").filter(visible=True).count() == 1, "of no other model"
    flowers.locator(".picture input").set_input_files(folder / "green.png")
    flowers.locator("button").click()
    expect(flowers.locator(".bars li").first).to_contain_text("tulip")
    flowers.locator(".picture input").set_input_files(folder / "labels.txt")
    flowers.locator("button").click()
    expect(flowers.locator(".note")).to_contain_text("expected a picture")


@pytest.mark.parametrize("size", [(1280, 900), (390, 844), (1280, 400)])
def test_nothing_is_wider_than_the_window(size, page):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_token_is_asked_for(browser, folder):
    (folder / "tokens").write_text(TOKEN)
    with started(command_of(folder, "--token-file", str(folder / "tokens"))) as server:
        page = browser.new_page()
        page.goto(server.facts["http"])
        page.fill("#token", TOKEN)
        page.click("#access button")
        expect(page.locator("details.model")).to_have_count(len(NAMES))
        iris = section(page, "iris")
        iris.locator("button").click()
        expect(iris.locator(".answer")).to_be_visible()
        page.close()

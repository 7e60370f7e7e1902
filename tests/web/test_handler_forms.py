"""The page of models, in Chromium: the form of a handler by the kinds of its inputs."""

import sys

import pytest
from playwright.sync_api import expect

from tests.serving.handlers.conftest import named
from tests.serving.handlers.test_served import picture_of
from tests.support.servers import started
from tests.web.test_models_page import section

CLASSES = {"behaviours": "Behaviours", "facts": "Facts", "sizes": "Sizes", "shares": "Shares"}


@pytest.fixture(scope="module")
def url():
    words = [part for each in named(**CLASSES).items() for part in ("--handler", "=".join(each))]
    ports = [f"--{name}port=0" for name in ("", "http-", "metrics-")]
    with started([sys.executable, "-m", "serving", "serve", *words, *ports]) as server:
        yield server.facts["http"]


def test_text_is_typed_and_its_answer_is_a_text(page):
    model = section(page, "behaviours")
    expect(model.locator("fieldset input")).to_be_hidden()
    model.locator("textarea").fill('say "grüße" [1, 2]')
    model.locator("button").click()
    expect(model.locator(".texts")).to_have_text('answer: SAY "GRÜSSE" [1, 2]')


def test_picture_is_chosen_dropped_or_pasted(page, tmp_path):
    model = section(page, "sizes")
    expect(model.locator("textarea")).to_be_hidden()
    model.locator("button").click()
    expect(model.locator(".note")).to_contain_text("choose a picture first")
    (tmp_path / "red.png").write_bytes(picture_of((255, 0, 0), (9, 4)))
    model.locator("fieldset input").set_input_files(tmp_path / "red.png")
    model.locator("button").click()
    expect(model.locator(".answer")).to_contain_text("[4,9]")
    for event, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        content = [*picture_of((0, 0, 255), (3, 8 if event == "drop" else 5))]
        model.locator("fieldset").evaluate(
            """(field, [event, holder, content]) => {
                const transfer = new DataTransfer();
                const bytes = new Uint8Array(content);
                transfer.items.add(new File([bytes], "blue.png", {type: "image/png"}));
                const happened = new Event(event, {bubbles: true, cancelable: true});
                happened[holder] = transfer;
                field.dispatchEvent(happened);
            }""",
            [event, holder, content],
        )
        model.locator("button").click()
        expect(model.locator(".answer")).to_contain_text("[8,3]" if event == "drop" else "[5,3]")


def test_file_is_sent_as_it_is(page, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"\0\xff")
    model = section(page, "facts")
    model.locator("fieldset input").set_input_files(tmp_path / "data.bin")
    model.locator("button").click()
    expect(model.locator(".answer")).to_contain_text('data BYTES [1]\n["/wA="]')


def test_probabilities_are_bars(page):
    model = section(page, "shares")
    model.locator("textarea").fill("x")
    model.locator("button").click()
    expect(model.locator(".bars li").first).to_have_text("10.7")
    expect(model.locator(".bars li")).to_have_count(3)

"""The page for pictures of any classifier, in Chromium."""

from PIL import Image
from playwright.sync_api import expect

from serving.model.repository import PRETRAINED
from tests.serving.test_picture_classifiers import COLOURS, IMAGE, colours
from tests.support.servers import running_server


def test_picture_has_its_classes(browser, tmp_path):
    (tmp_path / "colours.onnx").write_bytes(colours())
    (tmp_path / "labels.txt").write_text("\n".join(COLOURS))
    Image.new("RGB", (300, 200), (20, 200, 30)).save(tmp_path / "green.png")
    options = [str(tmp_path / "colours.onnx"), *IMAGE, str(tmp_path / "labels.txt")]
    errors: list[str] = []
    with running_server(PRETRAINED, *options, "--http-port", "0") as server:
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.facts['http']}/classify")
        page.select_option("#model", label="colours")
        page.set_input_files("#file", tmp_path / "green.png")
        expect(page.locator("#answer")).to_have_text("green")
        expect(page.locator("#bars li")).to_have_count(3)
        page.set_input_files("#file", tmp_path / "labels.txt")
        expect(page.locator("#note")).to_contain_text("expected a picture")
        page.close()
    assert not errors

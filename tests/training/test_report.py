import base64
import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from training import page, report
from training.config import RECIPES
from training.fitting.artifacts import load_json, load_model
from training.fitting.evaluation import probabilities
from training.page import PageFigure

PICTURES = [
    "confusion.svg", "curves.svg", "layers.svg", "mistakes.svg", "reliability.svg",
    "samples.svg",
]  # fmt: skip
TABLES = ("robustness", "digits", "layers")
MAX_PICTURE_BYTES = 120_000


@pytest.fixture(scope="module")
def folder(artifacts, mnist_sample, tmp_path_factory):
    """Artifacts with their report."""
    folder = Path(shutil.copytree(artifacts, tmp_path_factory.mktemp("report") / "artifacts"))
    report.write(folder, mnist_sample)
    return folder


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_a_small_svg(name, folder):
    content = (folder / name).read_bytes()
    assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(content) < MAX_PICTURE_BYTES


def test_page_holds_its_pictures_and_links_nowhere(folder):
    html = (folder / "report.html").read_text()
    inlined = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert [base64.b64decode(svg) for svg in inlined] == [
        (folder / f"{name}.svg").read_bytes() for name in report.CAPTIONS
    ]
    assert html.count("src=") == len(inlined)
    assert not re.search(r"https?:|href=|url\(|@import|<script|<link", html)


def test_page_shows_the_metrics(folder):
    html = (folder / "report.html").read_text()
    assert "Recipe seed, epochs 12, seed 0: 12 epochs" in html
    assert '<th scope="col">digit</th>' in html
    assert '<th scope="row">hidden_1</th>' in html
    assert "<td>200,960</td>" in html


def test_page_escapes_its_contents():
    metrics = {
        "recipe": "<script>", "seed": 0, "epochs": 1, "train_seconds": 1.0, "device": "cpu",
        "parameters": 1, "libraries": {}, "errors": {"test": 1},
        "accuracy": {"test": 0.9, "validation": 0.9}, "loss": {"test": 0.1, "validation": 0.1},
        "settings": RECIPES["seed"].as_json() | {"name": "<script>"},
    }  # fmt: skip
    html = report.render(
        metrics,
        dict.fromkeys(TABLES, (("<b>",),)),
        dict.fromkeys(report.CAPTIONS, PageFigure(b"", '"<i>')),
    )
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html


def test_page_does_not_call_validation_what_was_trained_on(folder):
    metrics = load_json(folder, "metrics.json")

    def html():
        pictures = dict.fromkeys(report.CAPTIONS, PageFigure(b"", ""))
        return report.render(metrics, dict.fromkeys(TABLES, (("a",),)), pictures)

    assert '<th scope="row">validation</th>' in html()
    assert "validation on images that were held out, without either" in html()
    metrics["settings"] = RECIPES["default"].as_json()
    assert '<th scope="row">validation</th>' not in html()
    assert "Calibrated on the augmented training images" in html()
    assert "held out" not in html()
    assert "validation has the last 5,000 of them, augmented" in html()


def test_layer_table_lists_every_layer_and_the_total(folder):
    rows = (folder / "layers.txt").read_text().splitlines()
    assert re.fullmatch(r"hidden_1 +Dense, relu +256 +200,960", rows[2])
    assert re.fullmatch(r"dropout_1 +Dropout, 0\.4 +256 +0", rows[3])
    assert re.fullmatch(r"total +241,650", rows[-1])


def test_mistakes_come_most_confident_first(mnist_sample):
    data = dataclasses.replace(mnist_sample, test_labels=np.zeros(500, np.uint8))
    answers = np.eye(10, dtype=np.float32)[np.zeros(500, int)]
    answers[7] = [0.2, 0, 0, 0.8, 0, 0, 0, 0, 0, 0]
    answers[9] = [0.1, 0, 0, 0, 0.9, 0, 0, 0, 0, 0]
    figure, alt = report.mistakes(data, answers)
    assert titles(figure) == ["predict 4\nreal 0", "predict 3\nreal 0"]
    assert alt == "2 misread digits: 0 read as 4, 0 read as 3."


def test_report_is_written_without_a_single_mistake(artifacts, mnist_sample, tmp_path):
    for name in ("model.keras", "history.json", "metrics.json"):
        (tmp_path / name).write_bytes((artifacts / name).read_bytes())
    answers = probabilities(load_model(artifacts), mnist_sample.test_images)
    digits = answers.argmax(axis=1).astype(np.uint8)
    report.write(tmp_path, dataclasses.replace(mnist_sample, test_labels=digits))
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        *PICTURES, "layers.txt", "report.html", "model.keras", "history.json", "metrics.json",
    }  # fmt: skip


def test_confusion_counts_real_by_row_and_predicted_by_column():
    answers = np.eye(10, dtype=np.float32)[[4, 9, 9]]
    counts = report.confusion_counts(answers, np.array([4, 4, 9], np.uint8))
    assert (counts[4, 4], counts[4, 9], counts[9, 9], int(counts.sum())) == (1, 1, 1, 3)


def test_digit_table_names_the_commonest_mistake():
    counts = np.diag(np.full(10, 90))
    counts[4, 9], counts[4, 6], counts[7, 7] = 8, 2, 0
    rows = report.digit_table(counts)
    assert rows[5] == ("4", "100", "10", "9 (8 ×)", "90.0%")
    assert rows[2] == ("1", "90", "0", "–", "100.0%")
    assert rows[8] == ("7", "0", "0", "–", "–")  # none in the test set


def test_same_figure_gives_the_same_svg():
    names = ("loss", "val_loss", "accuracy", "val_accuracy")
    history = {name: [0.5, 0.6] for name in names}
    one, other = (page.draw(report.curves(history), "") for _ in range(2))
    assert one == other


def test_alternative_texts_describe_the_figures():
    history = {"loss": [0.5, 0.1], "val_loss": [0.4, 0.2],
               "accuracy": [0.7, 0.9], "val_accuracy": [0.8, 0.85]}  # fmt: skip
    assert report.curves_alt(history) == (
        "Two line charts over 2 epochs: training loss from 0.500 to 0.100, validation loss from "
        "0.400 to 0.200, training accuracy from 0.700 to 0.900, validation accuracy from 0.800 to "
        "0.850."
    )
    counts = np.diag(np.full(10, 90))
    counts[4, 9] = 3
    assert report.confusion_alt(counts) == (
        "A grid of counts, ten digits by ten: 900 of 903 images lie on the diagonal. "
        "The commonest mistakes: 4 read as 9 (3 times)."
    )


# The page that all reports share: structure, and how it looks on a narrow and on a wide screen


TABLE = [["target", *(f"column {n} with words" for n in range(12))], ["a", *("1,000",) * 12]]
PICTURE = PageFigure(
    b'<svg xmlns="http://www.w3.org/2000/svg" width="432pt" height="300pt" viewBox="0 0 432 300">'
    b'<rect width="432" height="300" fill="#ddd"/></svg>',
    'a "grey" rectangle',
)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>
  const wide = [...document.querySelectorAll('main *')].filter(
      e => !e.closest('div') && e.getBoundingClientRect().right > innerWidth);
  document.title = [document.documentElement.scrollWidth > innerWidth, wide.length,
      document.querySelectorAll('div')[0].scrollWidth > innerWidth].join();
</script>"""


class Outline(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def html():
    sections = [
        page.section("Rates & more", "Per second.", TABLE),
        page.section("Grey", "", PICTURE),
    ]
    return page.page("Report", ["What was <measured>."], sections)


def test_page_names_its_headings_pictures_and_boxes_that_scroll(html):
    outline = Outline(html)
    assert [each["scope"] for each in outline.all("th")] == ["col"] * 13 + ["row"]
    assert [each["alt"] for each in outline.all("img")] == ['a "grey" rectangle']
    boxes = outline.all("div")
    assert [box["aria-label"] for box in boxes] == ["Rates & more", "Grey"]
    assert {(box["role"], box["tabindex"]) for box in boxes} == {("region", "0")}
    assert "What was &lt;measured&gt;." in html
    assert "Rates &amp; more" in html


@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [375, 390, 1280])
def test_nothing_is_wider_than_the_screen(html, width, tmp_path):
    # Windows have a least width, frames don't.
    (tmp_path / "report.html").write_text(html + MEASURE)
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" style="width: {width}px; height: 900px; border: 0" onload='
        "\"document.body.append('measured: ' + this.contentDocument.title)\"></iframe>"
    )
    assert BROWSER is not None
    dumped = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    found = re.search(r"measured: (\w+),(\d+),(\w+)", dumped)
    assert found, dumped
    is_page_wider, num_wider, is_table_wider = found.groups()
    assert (is_page_wider, num_wider) == ("false", "0")
    assert is_table_wider == "true" or width > 1000  # so that there was something to hold

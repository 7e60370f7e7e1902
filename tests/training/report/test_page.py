"""The page that all reports share: structure, and how it looks on a narrow and on a wide screen."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from training.report.page import Picture, page, section

TABLE = [["target", *(f"column {n} with words" for n in range(12))], ["a", *("1,000",) * 12]]
PICTURE = Picture(
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
    sections = [section("Rates & more", "Per second.", TABLE), section("Grey", "", PICTURE)]
    return page("Report", "A heading", ["What was <measured>."], sections)


def test_headings_of_columns_and_rows_say_their_scope(html):
    scopes = [attributes["scope"] for attributes in Outline(html).all("th")]
    assert scopes == ["col"] * 13 + ["row"]


def test_picture_says_what_is_seen(html):
    (picture,) = Outline(html).all("img")
    assert picture["alt"] == 'a "grey" rectangle'


def test_boxes_that_scroll_have_names_and_can_be_focused(html):
    boxes = Outline(html).all("div")
    assert [box["aria-label"] for box in boxes] == ["Rates & more", "Grey"]
    assert {(box["role"], box["tabindex"]) for box in boxes} == {("region", "0")}


def test_text_is_escaped(html):
    assert "What was &lt;measured&gt;." in html
    assert "Rates &amp; more" in html


@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [375, 390, 1280])
def test_nothing_is_wider_than_the_screen(html, width, tmp_path):
    # Windows have a least width, frames don't.
    (tmp_path / "page.html").write_text(html + MEASURE)
    (tmp_path / "frame.html").write_text(
        f'<iframe src="page.html" style="width: {width}px; height: 900px; border: 0" onload='
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

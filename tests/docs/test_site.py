"""The documentation: built without a network, and viewed without one."""

import re
from html.parser import HTMLParser

import pytest

from tests.test_traffic import ROOT, trace, traced

BUILD = """
import sys
from mkdocs.__main__ import cli
cli(["build", "--strict", "--quiet", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""


class Loads(HTMLParser):
    """Collects the addresses that a browser loads by itself when it shows a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        address = names.get("src") if tag != "link" else names.get("href")
        if address and not (tag == "link" and names.get("rel") in ("canonical", "next", "prev")):
            self.addresses.append(address)


def is_elsewhere(address):
    return re.match(r"(https?:)?//", address) is not None


def test_addresses_elsewhere_are_seen():
    page = '<link rel="stylesheet" href="//a/b.css"><script src="https://c/d.js"></script>'
    assert [*map(is_elsewhere, Loads(page).addresses)] == [True, True]
    assert not is_elsewhere("../css/theme.css")


@pytest.mark.slow
@traced
def test_documentation_is_built_and_viewed_without_a_network(tmp_path):
    site = tmp_path / "work" / "site"
    assert not trace(tmp_path, BUILD, ROOT / "mkdocs.yml", site).connections
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not [*filter(is_elsewhere, Loads(page.read_text()).addresses)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style

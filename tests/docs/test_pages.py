"""What the pages name exists; the runbook is whole; the site is built without a network."""

import ast
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serving.config import BatchingConfig
from serving.system.usage import Usage
from serving.telemetry.exposition import encode
from serving.telemetry.metrics import Counts, HandlerUsage, QueueUsage, Report, Served
from tests.test_boundaries import ORDER
from tests.test_traffic import trace, traced

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "SECURITY.md")),
]
MADE = {
    "benchmarks/results/local/",
    "benchmarks/results/local/MODEL.json",
    "benchmarks/results/local/SUITE.json",
}
"""The files that a command makes."""
_FOLDERS = (
    "benchmarks|deploy|digit_classifier|digit_scoring|docs|protos|requirements|serving|"
    "tests|training"
)
_CODE = re.compile(r"(?ms)^ *```.*?^ *```")
_NAMED = re.compile(rf"[`(]((?:{_FOLDERS})/[\w./-]*\w/?)[`)]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    named = set(_NAMED.findall(page.read_text("utf-8"))) - MADE
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_of_a_page_differ(page):
    """Links to the second of two equal ones work, too, so that nothing else tells of them."""
    headings = re.findall(r"(?m)^#+ .*$", _CODE.sub("", page.read_text("utf-8")))
    assert not [heading for heading, times in Counter(headings).items() if times > 1]


# Links work in a clone, too; the site's are checked by its build, which is strict


IN_A_CLONE = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "serving" / "http2" / "README.md",
    ROOT / "serving" / "proof" / "README.md",
]
_LINK = re.compile(r"\]\((?![a-z]+:|\.\./\.\./actions/)([^)\s#]*)#?([^)\s]*)\)")
"""A link to a file; `../../actions` is beside the code at GitHub, whoever owns it."""
_STUB = re.compile(r"`make docs` shows \[.*\]\(.*\) here\.\n")


def anchors(page):
    """Give the names of places in a page, as GitHub makes them of headings."""
    yield from re.findall(r'<a id="([\w-]+)">', page)
    names = Counter[str]()
    for heading in re.findall(r"(?m)^#+ (.*?)\s*$", _CODE.sub("", page)):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        name = re.sub(r"[^\w -]", "", words).strip().replace(" ", "-")
        yield f"{name}-{names[name]}" if names[name] else name
        names[name] += 1


def broken_links(page):
    for path, anchor in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        target = page.parent / path if path else page
        if not target.exists():
            yield f"{path} is not there"
        elif target.suffix == ".md":
            text = target.read_text("utf-8")
            if _STUB.fullmatch(text):
                yield f"{path} is empty in a clone: name the file that it shows"
            if anchor and anchor not in anchors(text):
                yield f"{path} has no heading {anchor}"


@pytest.mark.parametrize("page", IN_A_CLONE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_work_in_a_clone(page):
    assert not [*broken_links(page)]


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "a.md").write_text("# A `b`: c\n\n# A b c\n")
    (tmp_path / "stub.md").write_text("`make docs` shows [X.md](../X.md) here.\n")
    page = tmp_path / "page.md"
    page.write_text("[1](a.md#a-b-c) [2](a.md#a-b-c-1) [3](a.md#d) [4](e.md) [5](stub.md#f)")
    assert [*broken_links(page)] == [
        "a.md has no heading d",
        "e.md is not there",
        "stub.md is empty in a clone: name the file that it shows",
        "stub.md has no heading f",
    ]


def test_files_that_are_gone_are_seen():
    assert _NAMED.findall("see `serving/rpc/` and (training/none.md)") == [
        "serving/rpc/",
        "training/none.md",
    ]


def test_index_lists_every_decision():
    folder = ROOT / "docs" / "decisions"
    rows = re.findall(r"\((\d{4}-[\w-]+\.md)\) \| (.*?) \|", (folder / "index.md").read_text())
    titles = [(path.name, path.read_text("utf-8").splitlines()[0].partition(". ")[2])
              for path in sorted(folder.glob("0*.md"))]  # fmt: skip
    assert rows == titles


def test_names_that_a_decision_gives_are_in_its_code():
    missing = []
    for page in (ROOT / "docs" / "decisions").glob("0*.md"):
        for path, names in re.findall(r"`([\w./]+\.py)` \((`[^)]*`)\)", page.read_text("utf-8")):
            code = (ROOT / path).read_text("utf-8")
            missing += [
                f"{page.name}: {path}: {name}"
                for name in re.findall(r"`(?:\w+\.)?(\w+)`", names)
                if name not in code
            ]
    assert not missing


def test_names_in_the_glossary_are_in_its_code():
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    found = re.findall(r"`([\w.]+)` in `([\w./]+\.py)`", page)
    assert len(found) > 8
    names = [(path, name) for names, path in found for name in names.split(".")]
    assert not [pair for pair in names if pair[1] not in (ROOT / pair[0]).read_text("utf-8")]


# The page's plan of the house is the one that the boundaries are checked with


PLAN = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("package", ORDER)
def test_rooms_of_a_package_are_listed_from_the_ground_up(package):
    _, _, section = PLAN.partition(f"\n### {package}\n")
    listed = re.findall(r"(?m)^\| `([\w.]+)` \|", section.partition("\n### ")[0])
    assert listed == ORDER[package].split()


# The runbook has every metric and every log line that the server can emit


RUNBOOK = "".join(
    (ROOT / "docs" / name).read_text("utf-8")
    for name in (
        "operations.md",
        "metrics.md",
        "troubleshooting.md",
        "capacity.md",
        "overload.md",
    )
)
SPANS = re.findall(r"`([^`]+)`", RUNBOOK)
OF_THE_LOGGER = [
    "%d log lines were lost: stderr was not read",
    "a log line could not be formatted: ",
]
"""The keys that `serving/telemetry/logs.py` writes by itself."""
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_PLACEHOLDER = re.compile(r"%[-+ 0#]*[\d.]*[a-z]")


def metric_names():
    models = (Served("digits", "1", "", "", "", "default", 10),)
    queues = {("digits", "1"): QueueUsage(0, 1)}
    report = Report(models, BatchingConfig(), queues, 0, True, Usage.now(), Counts())
    report = report._replace(handlers={("digits", "1"): HandlerUsage()})
    _, body = encode(report, "text/plain")
    samples = re.findall(r"(?m)^([a-z_]+)[{ ]", body.decode())
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples}


def log_messages(folder):
    """Give the format of each log line of a package; None for one that is no literal."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_log"
            ):
                text = node.args[0]
                is_text = isinstance(text, ast.Constant) and isinstance(text.value, str)
                yield str(text.value) if is_text and isinstance(text, ast.Constant) else None


def is_described(message):
    pattern = ".+".join(map(re.escape, _PLACEHOLDER.split(message)))
    return any(re.fullmatch(pattern, span) for span in SPANS)


def test_every_metric_is_described_and_no_other():
    names = metric_names()
    assert len(names) > 20
    described = set(re.findall(r"(?m)^\| `((?:serving|process)_[a-z_]+)` \|", RUNBOOK))
    assert described == names


def test_every_log_line_is_described():
    messages = [*log_messages(ROOT / "serving"), OF_THE_LOGGER[0], f"{OF_THE_LOGGER[1]}%s"]
    assert len(messages) > 20
    assert None not in messages, "the text of a log line must be a literal"
    assert not [message for message in messages if message and not is_described(message)]


def test_lines_of_the_logger_are_these():
    source = (ROOT / "serving" / "telemetry" / "logs.py").read_text("utf-8")
    assert all(line in source for line in OF_THE_LOGGER)


def test_line_that_is_not_described_is_seen():
    assert is_described("worker %d died (%s), restart in %.1f s")
    assert not is_described("worker %d has left")


# The documentation: built without a network, and viewed without one


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

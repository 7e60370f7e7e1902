"""Prometheus scrapes a real server: every panel and every rule finds its series."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving import Client
from serving.images import Images
from tests.deploy.conftest import ROOT
from tests.docs.test_operations import metric_names
from tests.support.processes import wait_until
from tests.support.raw import Raw, status_of
from tests.support.servers import free_address, running_server

FOLDER = ROOT / "deploy" / "prometheus"
PANELS = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())["panels"]
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
RULES = re.findall(r"(?m)^  - (?:alert|record): (\w+)", (FOLDER / "rules.yml").read_text())
_COMPARISON = re.compile(r" (==|<|>) (?=[\d.]+\)?$)")


class Prometheus:
    """A running one."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """Call its HTTP API."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        """Evaluate an instant query; return its samples' values."""
        return [float(each["value"][1]) for each in self.ask("query", query=query)["result"]]


@contextmanager
def running_prometheus(program: Path, folder: Path, target: str) -> Iterator[Prometheus]:
    """Start it with the configuration that is delivered, each second, for this target."""
    shutil.copytree(FOLDER, folder)
    path = folder / "prometheus.yml"
    text = path.read_text()
    assert text.count('"digits:9090"') == 1
    path.write_text(text.replace("digits:9090", target).replace("10s", "1s"))
    address = free_address()
    command = [str(program), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield Prometheus(address)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def prometheus(
    program: Callable[[str, str], Path],
    models: Path,
    images: Images,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """One that has scraped a server under load, errors among it."""
    folder = tmp_path_factory.mktemp("prometheus") / "configuration"
    with (
        running_server(models) as server,
        running_prometheus(
            program("prometheus", "prometheus"), folder, server.facts["metrics"]
        ) as prometheus,
        Client(server.address) as client,
    ):

        def has_seen_calls() -> bool:
            client.classify(images)
            status_of(lambda: Raw(server.address).classify(b""))
            try:
                return bool(prometheus.values("digits_queue_seconds_mean"))
            except OSError:  # not up yet
                return False

        wait_until(has_seen_calls)
        yield prometheus


@pytest.mark.parametrize("query", TARGETS)
def test_panel_has_data(prometheus: Prometheus, query: str) -> None:
    for variable, value in (("$instance", ".*"), ("$__rate_interval", "1m")):
        query = query.replace(variable, value)
    assert "$" not in query
    assert prometheus.values(query)


def test_panel_of_a_metric_that_is_gone_has_none(prometheus: Prometheus) -> None:
    assert not prometheus.values("sum(rate(digits_rows_total[1m]))")


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    def rules() -> list[Any]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert [rule["name"] for rule in rules()] == RULES


def test_every_alert_compares_series_that_the_server_has(prometheus: Prometheus) -> None:
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            if rule["type"] == "alerting":
                query, number = _COMPARISON.subn(r" \1 bool ", rule["query"])
                assert number == 1, rule["query"]
                # A status that no call has had yet has no series.
                query = re.sub(r'status="INTERNAL"', 'status="INVALID_ARGUMENT"', query)
                query = query.replace("RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED", "INVALID_ARGUMENT")
                assert prometheus.values(query), rule["name"]


def test_healthy_server_fires_no_alert(prometheus: Prometheus) -> None:
    alerts = prometheus.ask("alerts")["alerts"]
    assert not [alert for alert in alerts if alert["state"] == "firing"]


def test_metric_that_a_file_names_exists() -> None:
    names = metric_names()
    for path in (FOLDER / "rules.yml", ROOT / "deploy" / "grafana" / "dashboard.json"):
        named = re.findall(r"\b((?:digits|process)_[a-z_]+)\b", path.read_text())
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
        assert plain - {"digits_queue_seconds_mean"} <= names
        assert len(plain) > 5


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "rules-test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(program: Callable[[str, str], Path], arguments: tuple[str, ...]) -> None:
    promtool = program("promtool", "prometheus")
    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    cases = re.findall(r"(?m)^    alertname: (\w+)", (FOLDER / "rules-test.yml").read_text())
    assert [*cases, "digits_queue_seconds_mean"] == RULES

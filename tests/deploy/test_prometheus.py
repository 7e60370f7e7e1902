"""Prometheus scrapes a real server: every panel and every rule finds its series."""

import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager

import grpc
import pytest

from digit_classifier import Classifier
from tests.deploy.conftest import ROOT
from tests.docs.test_pages import metric_names
from tests.support.fakes import image_with
from tests.support.raw import CLASSIFY, Raw, status_of
from tests.support.servers import free_address, paced_server, running_server, wait_until

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

    def __init__(self, address):
        self.address = address

    def ask(self, path, **parameters):
        """Call its HTTP API."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query):
        """Evaluate an instant query; return its samples' values."""
        return [float(each["value"][1]) for each in self.ask("query", query=query)["result"]]


@contextmanager
def running_prometheus(program, folder, target):
    """Start it with the configuration that is delivered, each second, for this target.

    Alerts fire after a second, where they wait for one minute or two.
    """
    shutil.copytree(FOLDER, folder)
    path = folder / "prometheus.yml"
    text = path.read_text()
    assert text.count('"digits:9090"') == 1
    path.write_text(text.replace("digits:9090", target).replace("10s", "1s"))
    rules = folder / "rules.yml"
    rules.write_text(re.sub(r"for: [12]m", "for: 1s", rules.read_text()))
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
def prometheus(program, models, images, tmp_path_factory):
    """One that has scraped a server under load, errors among it."""
    folder = tmp_path_factory.mktemp("prometheus") / "configuration"
    with (
        running_server(models) as server,
        running_prometheus(
            program("prometheus", "prometheus"), folder, server.facts["metrics"]
        ) as prometheus,
        Classifier.connect(server.address) as client,
    ):

        def has_seen_calls():
            client.classify(images)
            status_of(lambda: Raw(server.address).classify(b""))
            try:
                return bool(prometheus.values("serving_queue_seconds_mean"))
            except OSError:  # not up yet
                return False

        wait_until(has_seen_calls)
        yield prometheus


def filled(query):
    """Fill in a panel's variables."""
    for variable, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "1m")):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


@pytest.mark.parametrize("query", TARGETS)
def test_panel_has_data(prometheus, query):
    assert prometheus.values(filled(query))


def firing(prometheus):
    """Return the names of the alerts that fire."""
    alerts = prometheus.ask("alerts")["alerts"]
    return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


def has_scraped(prometheus, query="up"):
    """Return whether a query has a result; one of all rates has it after the second scrape."""
    try:
        return bool(prometheus.values(query))
    except OSError:  # it does not answer yet
        return False


def assert_panels_say_numbers_or_nothing(prometheus):
    for target in TARGETS:
        values = prometheus.values(filled(str(target.values[0])))
        assert not any(map(math.isnan, values)), target.id


def test_idle_fleet_has_numbers_for_an_autoscaler_and_no_alert(program, models, tmp_path):
    started = program("prometheus", "prometheus")
    with (
        running_server(models) as server,
        running_prometheus(started, tmp_path / "prometheus", server.facts["metrics"]) as prometheus,
    ):
        wait_until(lambda: has_scraped(prometheus, "serving_queue_seconds_mean"))
        assert prometheus.values("serving_queue_seconds_mean") == [0.0]
        errors = "sum by (method) (rate(serving_requests_total{status='INTERNAL'}[1m]))"
        assert set(prometheus.values(errors)) == {0.0}
        assert_panels_say_numbers_or_nothing(prometheus)
        assert not firing(prometheus)


def test_overloaded_fleet_is_noticed(program, tmp_path):
    started = program("prometheus", "prometheus")
    with (
        paced_server(queue_capacity=1, self_test_interval_s=0) as server,
        running_prometheus(started, tmp_path / "prometheus", server.facts["metrics"]) as prometheus,
        grpc.insecure_channel(server.address) as channel,
    ):
        server.tell("hold")
        classify = channel.unary_unary(CLASSIFY)
        request = b"\x0a\x90\x06" + image_with(1).tobytes()

        def is_noticed():
            for call in [classify.future(request, timeout=0.2) for _ in range(20)]:
                call.exception()
            return has_scraped(prometheus) and "ServingOverloaded" in firing(prometheus)

        wait_until(is_noticed)
        assert_panels_say_numbers_or_nothing(prometheus)


def test_empty_fleet_is_noticed(program, tmp_path):
    started = program("prometheus", "prometheus")
    with running_prometheus(started, tmp_path / "prometheus", free_address()) as prometheus:
        expected = {"ServingAbsent", "ServingDown"}
        wait_until(lambda: has_scraped(prometheus) and firing(prometheus) == expected)
        assert_panels_say_numbers_or_nothing(prometheus)


def test_every_rule_is_evaluated(prometheus):
    def rules():
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert [rule["name"] for rule in rules()] == RULES


def test_every_alert_compares_series_that_the_server_has(prometheus):
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            if rule["type"] == "alerting":
                if rule["name"] in ("ServingAbsent", "ServingCanaryFails", "ServingCanarySlow"):
                    continue  # no series: a server is there, and it has no canary
                query, number = _COMPARISON.subn(r" \1 bool ", rule["query"])
                assert number == 1, rule["query"]
                assert prometheus.values(query), rule["name"]


def test_metric_that_a_file_names_exists():
    names = metric_names()
    for path in (FOLDER / "rules.yml", ROOT / "deploy" / "grafana" / "dashboard.json"):
        named = re.findall(r"\b((?:serving|process)_[a-z_]+)\b", path.read_text())
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
        assert plain - set(RULES) <= names
        assert len(plain) > 5


def test_every_alert_has_a_case():
    cases = re.findall(r"(?m)^    alertname: (\w+)", (FOLDER / "rules-test.yml").read_text())
    alerts = re.findall(r"(?m)^  - alert: (\w+)", (FOLDER / "rules.yml").read_text())
    assert set(cases) == set(alerts)


def test_every_alert_says_where_to_read_what_to_do():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"(?m)^### (\w+)", page.split("\n## Alerts\n")[1].split("\n## ")[0])
    for path in (FOLDER / "rules.yml", ROOT / "deploy/kubernetes/monitoring/rules.yaml"):
        text = path.read_text()
        assert re.findall(r"alert: (\w+)", text) == headings
        places = re.findall(r"runbook_url: docs/troubleshooting.md#(\w+)", text)
        assert places == [heading.lower() for heading in headings]

"""`deploy/compose.yaml`: docker-compose accepts it, and all that it mounts and names exists."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

FOLDER = ROOT / "deploy"


@pytest.fixture(scope="module")
def services(program):
    compose = program("docker-compose", "docker-compose")
    arguments = ("-f", FOLDER / "compose.yaml", "config", "--format", "json")
    output = subprocess.check_output([compose, *arguments])
    return json.loads(output)["services"]


def test_files_that_are_mounted_exist(services):
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    assert len(mounts) == 3
    assert all(Path(mount["source"]).exists() for mount in mounts)
    assert (Path(services["digits"]["build"]["context"]) / "Containerfile").exists()


def test_prometheus_scrapes_and_grafana_reads_what_is_there(services):
    targets = re.findall(r'"(\w+):(\d+)"', (FOLDER / "prometheus/prometheus.yml").read_text())
    assert targets == [("digits", "9090")]
    assert "EXPOSE 9090" in (ROOT / "Containerfile").read_text()
    source = (FOLDER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert re.findall(r"http://(\w+):9090", source) == ["prometheus"]
    assert {"digits", "prometheus"} < set(services)
    provider = (FOLDER / "grafana/provisioning/dashboards/files.yaml").read_text()
    dashboard = services["grafana"]["volumes"][1]["target"]
    assert f"path: {Path(dashboard).parent}}}" in provider


def test_only_loopback_is_published(services):
    ports = [port for service in services.values() for port in service["ports"]]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_server_gets_longer_to_stop_than_it_takes(services):
    assert services["digits"]["stop_grace_period"] == "35s"  # --drain is 30 s

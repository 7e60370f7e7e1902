"""What a start loads: `serve model.onnx` over gRPC alone, once its verdict is kept."""

import os
import re
from pathlib import Path

from tests.serving.model.graphs import save, two_layers
from tests.support.servers import serve_command, started

ROOT = Path(__file__).parents[3]
MOST_MODULES, MOST_LINES = 116, 19_000
"""Modules and lines of ours, applications' included: what makes them more has to be worth it."""
NEEDLESS = re.compile(
    r"serving\.(model\.(proof|judging|preprocessing|signatures|manifest_file|settings_file|"
    r"acceptance|picture_inputs)|handlers\.(batcher|process|model)|security\.(?!exposure\b)\w+|http1|http_api|"
    r"telemetry\.(access_log|traces)|system\.(process_pool|shared_port|crash_record)|"
    r"client|http2\.client|transports\.(http_port|grpcio_server))\b"
)
"""Modules for models, options and callers that this start does not have."""


def loaded(folder, *options):
    """The files of ours that a start has loaded when it is ready, by the names of their modules."""
    command = [*serve_command(None, *options), "model.onnx"]
    environment = os.environ | {"SERVING_VERDICTS": str(folder / "verdicts")}
    command = [command[0], "-X", "importtime", *command[1:]]
    with started(command, cwd=folder, env=environment) as server:
        assert server.stop() == 0
        names = re.findall(r"\| +(\S+)$", server.process.stderr.read(), re.MULTILINE)
    found = {}
    for name in names:
        place = ROOT / name.replace(".", "/")
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and not name.startswith("tests"):
                found[name] = file
    return found


def test_start_loads_what_its_model_and_its_options_need(tmp_path):
    save(two_layers(), tmp_path)
    first, second = loaded(tmp_path), loaded(tmp_path)
    assert "serving.model.proof.walk" in first
    assert "serving.transports.grpc_port" in second
    assert not [name for name in second if NEEDLESS.match(name)]
    assert len(second) <= MOST_MODULES
    assert sum(len(file.read_text().splitlines()) for file in second.values()) <= MOST_LINES

"""A real server around an engine of known speed, that keeps a ledger of every row it ran.

    python -m tests.support.paced_server --transport grpcio --service-s 0.08 ...

Says `serving ... address=...` when it is ready, like the real one, then obeys lines on stdin:
`hold` stops the engine before its next run, `release` lets it go on, `lie` makes it answer wrongly
until `be honest`, `ledger` prints one JSON line.
The ledger is also written to --ledger-file when the server has ended by a signal.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import uvloop

from digit_classifier.predictions import DIGITS
from serving.config import BatchingConfig, Device, ServerConfig
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.server.lifetime import drain_when_signalled, exporting
from serving.server.server import Server
from serving.system import signals
from serving.telemetry import logs
from tests.support.fakes import images_of, probabilities_of, router_of, tickets_of, versions_of


class PacedEngine:
    """Takes the same time for every run; the time is slept, so capacity doesn't hang on the CPU."""

    device: Device = "cpu"
    max_concurrent_runs: int | None = None
    tensors = DIGITS.tensors

    def __init__(self, service_s, leak_bytes):
        self._service_s = service_s
        self._leak_bytes = leak_bytes
        self._leaked: list[bytes] = []
        self.tickets: Counter[int] = Counter()
        self.num_begun = 0
        self.lies = False
        self.gate = threading.Event()
        self.gate.set()

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None

    def run(self, feeds):
        images = feeds["images"]
        self.num_begun += 1
        self.gate.wait()
        if self._service_s:
            time.sleep(self._service_s)
        self.tickets.update(tickets_of(images))
        if self.lies:
            return [probabilities_of(images)[:, ::-1]]
        if self._leak_bytes:
            self._leaked.append(os.urandom(self._leak_bytes))
        return [probabilities_of(images)]


def main():
    options = _options()
    # One core is one runner: then the capacity is batch size / service time, exactly.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    logs.setup("text")
    os.environ["GRPC_VERBOSITY"] = "NONE"  # as the real one does
    engine = PacedEngine(options.service_s, options.leak_bytes)
    batching = BatchingConfig(
        max_batch_size=options.max_batch_size,
        queue_capacity=options.queue_capacity,
        max_request_rows=min(options.queue_capacity, 4096),
        spot_checks="off",  # a ledger has each run
    )
    router = router_of(LoadedModel(engine, _manifest(), "fp32"), batching)
    if options.with_other:  # whose engine obeys nothing
        other = LoadedModel(PacedEngine(0.0, 0), replace(_manifest(), name="other"), "fp32")
        router.change("other", versions_of(other))
    is_drained = uvloop.run(_serve(router, engine, options))
    router.close()
    if options.ledger_file:
        options.ledger_file.write_text(json.dumps(_ledger(engine)))
    return 0 if is_drained else 1


async def _serve(router, engine, options):
    config = ServerConfig(
        port=0,
        metrics_port=0,
        transport=options.transport,
        drain_s=options.drain_s,
        self_test_interval_s=options.self_test_interval_s,
    )
    with exporting(config) as exporter:
        server = Server(router, config, exporter)
        stops = signals.queue_stops()
        await server.start()
        threading.Thread(target=_obey, args=(engine,), daemon=True).start()
        return await drain_when_signalled(server, stops, _announce)


def _announce(server):
    print(
        f"serving transport={server.transport} address={server.address} "
        f"metrics={server.metrics_address}",
        flush=True,
    )


def _obey(engine):
    for line in sys.stdin:
        match line.strip():
            case "hold":
                engine.gate.clear()
            case "release":
                engine.gate.set()
            case "lie" | "be honest" as command:
                engine.lies = command == "lie"
            case "ledger":
                print(json.dumps(_ledger(engine)), flush=True)


def _ledger(engine):
    """Runs that have begun, and how often each ticket was run."""
    return {"begun": engine.num_begun, "tickets": list(engine.tickets.items())}


def _manifest():
    golden = images_of(1, 2, 3)
    return Manifest(
        signature=DIGITS, name="digits", version="1", test_accuracy=1.0, digests={},
        golden_images=golden, golden_probabilities={"fp32": probabilities_of(golden)},
    )  # fmt: skip


def _options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", required=True)
    parser.add_argument("--service-s", type=float, default=0.0)
    parser.add_argument("--max-batch-size", type=int, default=64)
    parser.add_argument("--queue-capacity", type=int, default=16_384)
    parser.add_argument("--drain-s", type=float, default=30.0)
    parser.add_argument("--self-test-interval-s", type=float, default=0.0)
    parser.add_argument("--leak-bytes", type=int, default=0, help="planted leak, per run")
    parser.add_argument("--ledger-file", type=Path)
    parser.add_argument("--with-other", type=bool, default=False, help="a second model, other")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

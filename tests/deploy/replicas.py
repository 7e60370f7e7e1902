"""Real servers behind a real Envoy, and callers of both."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from deploy.edge import Edge, running_envoy, write_configuration, write_replicas
from digit_classifier import Classifier
from digit_classifier.wire import encode_request
from tests.support.load import ClosedLoop
from tests.support.servers import RunningServer, running_server, wait_until

IN_FLIGHT = 32


@dataclass
class Replicas:
    """Servers, and the Envoy in front of them."""

    models: Path
    options: tuple[str, ...]
    stack: ExitStack
    """The command that ends them all."""
    servers: list[RunningServer] = field(default_factory=list)
    edge: Edge = field(init=False)

    @property
    def certificates(self):
        return self.edge.folder / "certs"

    @property
    def credentials(self):
        return grpc.ssl_channel_credentials((self.certificates / "client-ca.pem").read_bytes())

    def client(self, token=None):
        authority = self.certificates / "client-ca.pem"
        return Classifier.connect(self.edge.tls, tls_ca=authority, token=token)

    def load(self, images):
        """Calls of one image each, over TLS, none of which the caller repeats."""
        requests = [encode_request(image.tobytes()) for image in images]
        return ClosedLoop(self.edge.tls, requests, IN_FLIGHT, self.credentials)

    def start(self):
        """Start one more server; Envoy does not know it yet."""
        server = self.stack.enter_context(running_server(self.models, *self.options))
        self.servers.append(server)
        return server

    def name_to_envoy(self, *addresses):
        """Let Envoy have these replicas, and wait until it sends them calls."""
        write_replicas(self.edge.folder, addresses)
        wait_until(lambda: self.edge.healthy() == set(addresses))


@contextmanager
def replicas_behind(envoy, folder, models, *options, number=2):
    """Start servers with these options, and Envoy with `deploy/envoy`."""
    folder.mkdir()
    with ExitStack() as stack:
        replicas = Replicas(models, options, stack)
        addresses = [replicas.start().address for _ in range(number)]
        http = [each.facts["http"].removeprefix("http://") for each in replicas.servers
                if "http" in each.facts]  # fmt: skip
        write_configuration(folder, addresses, (0, 0), http)
        replicas.edge = stack.enter_context(running_envoy(envoy, folder, "--concurrency", "1"))
        wait_until(lambda: replicas.edge.healthy() == set(addresses))
        yield replicas

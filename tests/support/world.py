"""A server of both protocols in this process, on Unix sockets, on a loop that the test turns."""

import socket

from digit_classifier.methods import methods as digits_methods
from serving.config import SecurityConfig, ServerConfig
from serving.http_api.inference import Inference
from serving.oip.infer import Infer
from serving.protocols.method import BatchedStream, BatchedUnary
from serving.router import Router
from serving.security.tokens import token_check
from serving.system.host import Host
from serving.transports.h2_server import H2Server
from serving.transports.http_port import open_port
from serving.transports.http_routing import App
from serving.transports.port_limits import PortLimits
from tests.support.fakes import FakeClock, versions_of

MIB = 1 << 20
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Here:
    """Runners that work at once."""

    def put(self, work, post):
        post(work())

    def close(self): ...


def listen(path):
    """Listen on a Unix socket: bytes that are sent have arrived, without a moment between."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.setblocking(False)
    return sock


class World:
    """A server of both protocols, whose clock and turns are the test's."""

    def __init__(self, folder, models, max_buffered_bytes=16 * MIB, tokens=None):
        """Serve loaded models, by their names; callers need one of the tokens, if there are any."""
        self.clock = FakeClock()
        self.clock.advance(1000.0)
        self.web = listen(folder / "web")
        host = Host(
            clock=self.clock,
            listen=lambda *_: listen(folder / "grpc"),
            runners=lambda number: Here(),
        )
        router = self.router = Router(host=host)
        for name, model in models.items():
            router.change(name, versions_of(model, name))
        infer, streamed = Infer(router), Infer(router, is_stream=True)
        methods = [
            BatchedUnary(path=INFER, name="ModelInfer", read=infer.read, known=infer.known),
            BatchedStream(
                path=STREAM, name="ModelStreamInfer", read=streamed.read,
                known=streamed.known, error_message=streamed.error_message,
            ),
            *digits_methods(router, "h2"),
        ]  # fmt: skip
        limits = PortLimits(max_message_bytes=1 << 24, max_buffered_bytes=max_buffered_bytes)
        security = SecurityConfig(tokens=tokens)
        config = ServerConfig(port=0, security=security)
        server = H2Server(router, methods, config, limits, host)
        self.grpc = server.open()
        assert server.loop is not None
        self.loop = server.loop
        routes = Inference(router, 1 << 20).routes()
        app = App(routes, token_check(security), ("127.0.0.1",), [])
        self.loop.add(open_port(self.loop, self.web, app, router, limits, None))

    def turn(self):
        """Let the loop do all that it can."""
        for _ in range(10_000):
            self.clock.advance(1e-4)  # past the moment for which it polls
            self.loop.turn(ready := self.loop.selector.select(0))
            if not ready and self.loop.timeout_s():
                return
        raise AssertionError("the loop has no end")

    def pass_time(self, seconds):
        """Let time pass, in which the loop looks at its connections."""
        self.clock.advance(seconds)
        self.loop.hurry(0.0)
        self.turn()

    @property
    def num_bytes(self):
        """The room that answers hold."""
        return self.loop.calls.budget.num_unsent

    def close(self):
        for port in self.loop._ports:
            port.close()
            port.end_all()
        self.loop._close()
        self.router.close()


class Caller:
    """A caller that reads when it is asked to."""

    def __init__(self, world, listener):
        self.world = world
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(listener.getsockname())
        self.socket.setblocking(False)
        self.received = b""

    def send(self, data):
        self.socket.setblocking(True)
        self.socket.sendall(data)
        self.socket.setblocking(False)
        self.world.turn()

    def read(self, most=1 << 62):
        """Read what comes, up to a number of bytes; return whether the server has hung up."""
        while most > 0:
            try:
                part = self.socket.recv(min(most, MIB))
            except BlockingIOError:
                self.world.turn()
                try:
                    part = self.socket.recv(min(most, MIB))
                except BlockingIOError:
                    return False
            except ConnectionError:
                return True
            if not part:
                return True
            most -= len(part)
            self.received += part
        return False

    def leave(self):
        self.socket.close()
        self.world.turn()

"""What a bad handler costs: its own calls, and nothing else."""

import os
import re
import signal
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import serving
from serving.config import ModelConfig
from serving.handlers.loading import HandlerSource
from serving.handlers.process import Program, start
from serving.versions.catalog import Catalog
from tests.serving.handlers.conftest import at_once, named
from tests.serving.http.peer import HttpPeer
from tests.support.servers import wait_until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def shared():
    """A server whose two handlers have a process each; no test changes or ends it."""
    handlers = named(behaviours="Behaviours", joined="Joined")
    with serving.Server(handler=handlers, handler_processes=1) as server:
        yield server


@pytest.fixture
def alone(shared):
    """A client of the shared server."""
    with serving.Client(shared.address, timeout_s=20) as client:
        yield client


@pytest.fixture
def num_waiting(shared):
    """A function that returns how many rows wait in the shared server."""

    def count():
        page = HttpPeer(f"http://{shared.metrics_address}").get("/metrics").body.decode()
        return sum(map(float, re.findall(r"^serving_queue_rows{.*} (\S+)", page, re.M)))

    return count


def say(client, text="say it", **options):
    return client.infer("behaviours", {"text": [text]}, **options)


def test_crash_costs_its_call_alone(alone):
    before = say(alone)["pid"][0]
    with pytest.raises(serving.ModelError, match="the handler's process has ended"):
        say(alone, "kill")
    after = say(alone)
    assert after["answer"][0] == "SAY IT"
    assert after["pid"][0] != before
    assert after["calls"][0] == 1  # the crashed call was not tried again


def test_hanging_call_ends_its_process_in_time(served):
    server, client = served(
        handler=named(behaviours="Behaviours"), handler_processes=2, max_handler="0.3"
    )
    threads, outcomes = at_once(lambda: say(client, "hang"))
    assert say(client)["answer"][0] == "SAY IT"  # the other process
    threads[0].join()
    assert isinstance(outcomes[0], serving.DeadlineExceeded)
    assert "more than 0.3 s" in str(outcomes[0])
    wait_until(lambda: "the handler takes more than 0.3 s" in server.errors)
    assert say(client)["answer"][0] == "SAY IT"


def test_memory_beyond_the_limit_ends_a_process(served):
    server, client = served(handler=named(behaviours="Behaviours"), max_handler_bytes="200M")
    before = say(client)["pid"][0]
    with suppress(serving.ModelError):  # the look comes during the call, or after it
        say(client, f"eat {300 << 20}")
    wait_until(lambda: "takes more than 200 MiB" in server.errors)
    assert say(client)["pid"][0] != before


def test_memory_of_children_counts(served):
    _, client = served(handler=named(behaviours="Behaviours"), max_handler_bytes="200M")
    before = say(client)["pid"][0]
    child = int(say(client, f"fork {300 << 20}")["answer"][0])

    def is_another():
        with suppress(serving.ModelError):  # in hand as the process is ended
            return say(client)["pid"][0] != before
        return False

    wait_until(is_another)
    wait_until(lambda: not is_alive(child))


def test_children_end_with_their_process(alone):
    child = int(say(alone, "fork")["answer"][0])
    assert is_alive(child)
    with pytest.raises(serving.ModelError):
        say(alone, "kill")
    wait_until(lambda: not is_alive(child))


@pytest.mark.parametrize("how", ["", "leave"])
def test_child_that_has_the_socket_holds_no_caller(alone, how):
    """Even one that has left the group of its process."""
    with pytest.raises(serving.ModelError, match="the handler's process has ended"):
        say(alone, f"fork_and_exit {how}")
    assert say(alone)["answer"][0] == "SAY IT"


def test_process_that_closes_its_socket_costs_its_call_alone(alone):
    with pytest.raises(serving.ModelError, match="the handler's process has ended"):
        say(alone, "close")
    assert say(alone)["answer"][0] == "SAY IT"


def test_text_that_is_none_costs_its_call_alone(alone):
    before = say(alone)["pid"][0]
    with pytest.raises(serving.ModelError, match="the handler failed"):
        say(alone, "surrogate")
    with pytest.raises(serving.InvalidRequest, match=r"\?"):
        say(alone, "refuse_surrogate")
    assert say(alone)["pid"][0] == before


def test_handler_does_not_get_the_tokens_of_the_server(served, monkeypatch):
    monkeypatch.setenv("SERVING_TOKEN", "a-secret-of-many-letters")
    monkeypatch.setenv("SERVING_MAX_HANDLER", "50")
    server = serving.Server(handler=named(behaviours="Behaviours"))
    token = "a-secret-of-many-letters"
    with server, serving.Client(server.address, timeout_s=20, token=token) as client:
        names = say(client, "token")["answer"][0].split(",")
    assert "SERVING_MAX_HANDLER" in names
    assert "SERVING_TOKEN" not in names


def test_late_call_is_not_begun_and_ends_no_process(alone, gate):
    before = say(alone)
    threads, outcomes = at_once(lambda: say(alone, f"wait {gate.path}"))
    with gate.closed():
        for _ in range(20):
            with pytest.raises((serving.DeadlineExceeded, serving.Overloaded)):
                say(alone, "say late", timeout_s=0.001)
    threads[0].join()
    after = say(alone)
    assert after["pid"][0] == outcomes[0]["pid"][0] == before["pid"][0]
    assert after["calls"][0] == before["calls"][0] + 2  # none of the late ones


def test_running_call_is_abandoned_and_its_process_goes_on(alone, gate):
    before = say(alone)["pid"][0]
    threads, outcomes = at_once(lambda: say(alone, f"wait {gate.path}", timeout_s=0.3))
    with gate.closed():
        threads[0].join()
        assert isinstance(outcomes[0], serving.DeadlineExceeded)
    assert say(alone)["pid"][0] == before


def test_process_killed_under_callers_costs_the_running_call(served):
    _, client = served(handler=named(behaviours="Behaviours"), handler_processes=2)
    pid, wrong, errors = int(say(client)["pid"][0]), [], []
    is_over = threading.Event()
    counts = [0] * 16

    def call(place):
        while not is_over.is_set():
            text = f"say {place} {counts[place]}"
            try:
                if say(client, text)["answer"][0] != text.upper():
                    wrong.append(text)
            except serving.ServingError as err:
                errors.append(err)
            counts[place] += 1

    threads, _ = at_once(*(lambda place=place: call(place) for place in range(16)))
    wait_until(lambda: min(counts) > 5)
    os.kill(pid, signal.SIGKILL)
    before = counts[:]
    wait_until(lambda: all(now > then + 5 for now, then in zip(counts, before, strict=True)))
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(errors) <= 1  # the one that ran in it
    assert all(isinstance(each, serving.ModelError) for each in errors)


def test_processes_that_end_again_and_again_rest(served):
    _, client = served(handler=named(behaviours="Behaviours", facts="Facts"), handler_processes=1)
    for _ in range(2):
        with pytest.raises(serving.ModelError):
            say(client, "exit 1")
    assert client.infer("facts", {"data": [b"ab"]})["data"].tolist() == [b"ba"]
    assert say(client)["answer"][0] == "SAY IT"  # retried until a process is there again


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_server_though_they_hang(number):
    with serving.Server(handler=named(behaviours="Behaviours"), handler_processes=2) as server:
        with serving.Client(server.address, timeout_s=20) as client:
            pids = {int(say(client)["pid"][0]) for _ in range(20)}
            threads, _ = at_once(lambda: say(client, "hang", timeout_s=0.5))
            threads[0].join()
        os.kill(server.pid, number)
        wait_until(lambda: not any(map(is_alive, pids)))


def test_old_processes_end_after_a_reload(served, tmp_path):
    file = tmp_path / "pid.py"
    text = (
        "import os\nimport serving\n\nclass Pid(serving.Handler):\n"
        "    inputs = {'x': serving.Text()}\n    outputs = {'pid': serving.Array('int64')}\n\n"
        "    def predict(self, x):\n        return [os.getpid()] * len(x)  # VERSION\n"
    )
    file.write_text(text)
    _, client = served(handler=str(file), reload_interval="0.1", handler_processes=1)
    before = int(client.infer("pid", ["x"])["pid"][0])
    file.write_text(text.replace("VERSION", "second"))
    wait_until(lambda: int(client.infer("pid", ["x"])["pid"][0]) != before)
    wait_until(lambda: not is_alive(before))


def test_workers_have_their_own_processes(served):
    server, client = served(handler=named(behaviours="Behaviours"), workers=2, handler_processes=2)
    assert say(client)["answer"][0] == "SAY IT"
    page = HttpPeer(f"http://{server.metrics_address}")
    text = 'serving_handler_processes{model="behaviours",version="1"} 2.0'
    wait_until(lambda: text in page.get("/metrics").body.decode())


def test_model_that_rests_is_not_ready_and_others_are(served):
    server, client = served(
        handler=named(behaviours="Behaviours", facts="Facts"), handler_processes=1
    )
    peer = HttpPeer(f"http://{server.http_address}")
    is_ready = set()

    def look():
        is_ready.add(peer.get("/v2/models/behaviours/ready").status)
        assert peer.get("/v2/models/facts/ready").status == 200
        if 503 not in is_ready:  # its rest was too short to be seen
            with suppress(serving.ServerError):
                say(client, "exit 1", timeout_s=0.2)
        return {200, 503} <= is_ready

    wait_until(look)


def test_handler_that_cannot_be_used_is_one_line_and_others_are_served(served, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import serving\n\nclass Bad(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        "    def setup(self, folder):\n        raise ValueError('no vocabulary')\n\n"
        "    def predict(self, x):\n        return x\n"
    )
    handlers = named(behaviours="Behaviours") | {"bad": str(bad)}
    server, client = served(handler=handlers, allow_missing=True)
    assert client.models() == ["behaviours"]
    assert "model bad is not served: bad.py:7: ValueError: no vocabulary" in server.errors
    assert server.errors.count("no vocabulary") == 1, "the traceback is for --log-level debug"
    assert say(client)["answer"][0] == "SAY IT"
    for options in ({"handler": str(bad)}, {"handler": handlers}):
        with pytest.raises(serving.ConfigurationError, match=r"bad\.py:7: ValueError: no vocab"):
            serving.Server(**options)


AROUND = """\
import serving

class Around(serving.Handler):
    inputs = {"text": serving.Text()}

    def setup(self, folder):
        (folder / "model.onnx").read_bytes()

    def preprocess(self, text):
        return [[len(each)] * 4 for each in text]
"""


@pytest.mark.parametrize(
    ("name", "more", "ending"),
    [
        ("modle", {}, ", and none is named modle: did you mean model?"),
        ("x", {}, ", and none is named x, only model, other"),
        ("modle", {"y": "Behaviours"}, ", and none is named modle: did you mean model?"),
    ],
)
def test_handler_of_a_model_that_is_not_there_is_an_error(network, tmp_path, name, more, ending):
    """Else the model itself would answer, by its name, with its own inputs."""
    for each in ("model", "other"):
        (tmp_path / f"{each}.onnx").write_bytes(network.read_bytes())
    (tmp_path / "around.py").write_text(AROUND)
    handlers = [f"{name}={tmp_path / 'around.py'}"]
    handlers += [f"{each}={source}" for each, source in named(**more).items()]
    with pytest.raises(serving.ConfigurationError) as caught:
        Catalog(ModelConfig(models=tmp_path, handler=tuple(handlers)))
    expected = f"handler {name}: Around has preprocess: it needs a model{ending}"
    assert str(caught.value) == expected


def test_model_that_goes_takes_its_handler_with_it(network, tmp_path, caplog):
    for each in ("net", "other"):
        (tmp_path / f"{each}.onnx").write_bytes(network.read_bytes())
    (tmp_path / "around.py").write_text(AROUND.replace("model.onnx", "other.onnx"))
    catalog = Catalog(ModelConfig(models=tmp_path, handler=(f"net={tmp_path / 'around.py'}",)))
    catalog.models["net"].default.close()
    (tmp_path / "net.onnx").rename(tmp_path / "net")
    assert catalog.reload()
    assert [*catalog.models] == ["other"]
    assert not catalog.reload()
    assert caplog.messages == ["model net is gone from the repository: it is dropped"]
    (tmp_path / "net").rename(tmp_path / "net.onnx")
    assert catalog.reload()
    assert catalog.models["net"].default.tensors.inputs[0].name == "text"
    catalog.models["net"].default.close()


def test_circle_of_handlers_is_refused(served, tmp_path):
    text = (
        "import serving\n\nclass One(serving.Handler):\n"
        "    inputs = outputs = {{'x': serving.Text()}}\n    uses = ({!r},)\n\n"
        "    def predict(self, x):\n        return self.models.infer('b', x)['x']\n"
    )
    files = {"a": "b", "b": "a"}
    for name, other in files.items():
        (tmp_path / f"{name}.py").write_text(text.format(other))
    handlers = {name: str(tmp_path / f"{name}.py") for name in files}
    handlers |= named(behaviours="Behaviours")
    server, client = served(handler=handlers, allow_missing=True)
    assert client.models() == ["behaviours"]
    assert "handlers call one another in a circle: a -> b -> a" in server.errors


def test_changed_file_is_picked_up_without_a_failed_call(served, tmp_path):
    file = tmp_path / "greeting.py"

    def write(text):
        new = tmp_path / "new.py"
        new.write_text(
            "import serving\n\nclass Greeting(serving.Handler):\n"
            "    inputs = outputs = {'x': serving.Text()}\n\n"
            f"    def predict(self, x):\n        return [{text!r} + each for each in x]\n"
        )
        # All within one second, which is all that a cache of bytecode knows of a file's time.
        os.utime(new, ns=(0, next(times)))
        new.rename(file)

    times = count(1_700_000_000 * 10**9)
    write("one ")
    server, client = served(handler=str(file), reload_interval="0.1")
    found = set()

    def has_changed():
        found.add(client.infer("greeting", {"x": ["it"]})["x"][0])
        return "two it" in found

    assert not has_changed()
    write("two ")
    wait_until(has_changed)
    assert found == {"one it", "two it"}
    write("no python")  # still good Python: the text
    file.write_text("this is no python")
    wait_until(lambda: "greeting.py:1: SyntaxError" in server.errors)
    assert client.infer("greeting", {"x": ["it"]})["x"][0] in ("two it", "no pythonit")


def test_changed_file_that_a_handler_imports_is_picked_up(served, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "__init__.py").write_text("")
    (tmp_path / "words" / "greeting.py").write_text("TEXT = 'one'\n")
    file = tmp_path / "hello.py"
    file.write_text(
        "import serving\nfrom words.greeting import TEXT\n\nclass Hello(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        "    def predict(self, x):\n        return [TEXT for each in x]\n"
    )
    server, client = served(handler=str(file), reload_interval="0.1", handler_processes=1)
    assert client.infer("hello", ["it"])["x"].tolist() == ["one"]
    (tmp_path / "words" / "greeting.py").write_text("TEXT = 'the second'\n")
    wait_until(lambda: client.infer("hello", ["it"])["x"][0] == "the second")
    (tmp_path / "words" / "greeting.py").write_text("TEXT = no\n")
    wait_until(lambda: "NameError: name 'no'" in server.errors)
    assert client.infer("hello", ["it"])["x"][0] == "the second"
    (tmp_path / "words" / "greeting.py").write_text("TEXT = 'the third'\n")
    wait_until(lambda: client.infer("hello", ["it"])["x"][0] == "the third")
    assert server.errors.count("NameError") == 1


def save_version(folder, network, body):
    """Write a version of a model, and the rest of the class of its handler of texts."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(network.read_bytes())
    (folder / "handler.py").write_text(
        "import serving\nimport numpy as np\n\nclass Around(serving.Handler):\n"
        f"    inputs = {{'text': serving.Text()}}\n{body}"
    )


def test_handler_of_a_repository_needs_a_flag(served, network, tmp_path):
    save_version(
        tmp_path / "models" / "net" / "1",
        network,
        "    def setup(self, folder):\n        self.name = folder.name\n\n"
        "    def preprocess(self, text):\n"
        "        return np.full((len(text), 4), float(self.name), 'float32')\n",
    )
    models = str(tmp_path / "models")
    server, client = served(models=models)
    assert client.describe("net").inputs[0].name == "x"
    says = "model net version 1 is served without its handler.py, which does not run: --allow-han"
    assert server.errors.count(says) == 1
    assert client.describe("net").batching.startswith("without its handler.py; batching on: ")
    _, client = served(models=models, allow_handlers=True)
    with serving.Model.load(network) as plain:
        expected = plain.infer(np.ones((2, 4), np.float32))["y"]
    np.testing.assert_array_equal(client.infer("net", {"text": ["a", "b"]})["y"], expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.symlink_to("nothing.py"), "is a link to nothing"),
        (os.mkfifo, "is no file"),
        (Path.mkdir, "is no file"),
    ],
    ids=["link", "fifo", "folder"],
)
def test_handler_of_a_repository_that_is_no_file_is_refused(network, tmp_path, make, words):
    """Else the model itself would answer, by its own inputs."""
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(network.read_bytes())
    make(folder / "handler.py")
    expected = rf"handler: {folder / 'handler.py'} {words}"
    with pytest.raises(serving.ServingError, match=expected):
        Catalog(ModelConfig(models=tmp_path, allow_handlers=True))
    assert Catalog(ModelConfig(models=tmp_path)).models["net"].default.is_as_its_graph


START = """\
import os
import serving

class Silent(Exception):
    def __str__(self):
        return None

class Start(serving.Handler):
    inputs = outputs = {"x": serving.Text()}

    def setup(self, folder):
        BODY

    def predict(self, x):
        return x
"""


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("os.closerange(3, 256)", "its process ended while it started: it closed its connection"),
        ("os.closerange(0, 256)", "its process ended while it started: it closed its connection"),
        ("raise Silent", "start.py:12: Silent"),
        ("assert False", "start.py:12: AssertionError"),
        ("raise ValueError('\\ud800')", "start.py:12: ValueError: \\ud800"),
    ],
)
def test_setup_that_fails_in_any_way_is_one_line(tmp_path, body, line):
    file = tmp_path / "start.py"
    file.write_text(START.replace("BODY", body))
    with pytest.raises(serving.ServingError, match=re.escape(line)) as caught:
        serving.Server(handler=str(file))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_end_of_a_process_is_noticed_with_a_pidfd_and_without(
    has_descriptors, tmp_path, monkeypatch
):
    if not has_descriptors:  # Linux before 5.3

        def refuse(pid):
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refuse)
    (tmp_path / "start.py").write_text(START.replace("BODY", "pass"))
    started = start(Program("m", HandlerSource(tmp_path / "start.py"), tmp_path, None, 60.0))
    assert started.memory_bytes > 1 << 20
    os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not started.memory_bytes)
    started.close()


def test_setup_that_hangs_is_ended_in_time(tmp_path, gate):
    file = tmp_path / "start.py"
    file.write_text(START.replace("BODY", f"open({str(gate.path)!r}).read()"))
    expected = "start.py:1: imports and setup take more than 0.7 s (--max-handler-setup)"
    with pytest.raises(serving.ServingError, match=re.escape(expected)):
        serving.Server(handler=str(file), max_handler_setup="0.7")


def test_answer_that_is_too_large_is_not_read(served):
    handlers = named(behaviours="Behaviours", doubles="Doubles")
    server, client = served(handler=handlers, max_response_bytes=4000)
    before = say(client, "write 1900")["pid"][0]
    expected = r"the answer is too large: answer has 4204 bytes, .* 4000 \(--max-response-bytes\)"
    with pytest.raises(serving.TooLarge, match=expected):
        say(client, "write 2100")
    answer = HttpPeer(f"http://{server.http_address}").ask(
        "POST", "/v2/models/behaviours/infer", b"write 2100", content_type="text/plain"
    )
    assert (answer.status, answer.json["reason"]) == (500, "TOO_LARGE")
    assert say(client)["pid"][0] == before
    rows = np.ones((100, 3), np.float32)  # 1200 bytes of answers each
    threads, outcomes = at_once(*[lambda: client.infer("doubles", {"x": rows})] * 16)
    for thread in threads:
        thread.join()
    assert all(each["y"].sum() == 600 for each in outcomes), "several of a run, over the limit"


def test_url_brings_no_code(network, tmp_path, caplog):
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(network.read_bytes())
    (folder / "handler.py").write_text("raise SystemExit('it was run')\n")
    url, cache = f"file://{tmp_path / 'models'}", tmp_path / "cache"
    catalog = Catalog(ModelConfig(url=url, model_cache=cache, allow_handlers=True))
    assert catalog.models["net"].default.is_as_its_graph
    assert not caplog.records or "it was run" not in caplog.text


def test_cascade_ends_with_the_deadline_of_its_call(served):
    _, client = served(
        handler=named(behaviours="Behaviours", cascade="Cascade"),
        handler_processes=1,
        max_handler="1",
    )
    for _ in range(2):  # the cascade's process goes on; the other one is replaced
        with pytest.raises(serving.DeadlineExceeded):
            client.infer("cascade", {"text": ["hang"]}, timeout_s=0.3)
    assert client.infer("cascade", {"text": ["say it"]})["answer"].tolist() == ["SAY IT"]


@pytest.fixture(scope="module")
def asking():
    """A client of a handler that asks another one; each has one process."""
    handlers = named(behaviours="Behaviours", asks="Asks")
    with (
        serving.Server(handler=handlers, handler_processes=1) as server,
        serving.Client(server.address, timeout_s=20) as client,
    ):

        def ask(text, **options):
            return client.infer("asks", {"text": [text]}, **options)["answer"][0]

        yield ask


def test_late_call_does_not_hold_a_process_that_waits_for_another_model(asking, gate):
    threads, outcomes = at_once(lambda: asking(f"ask wait {gate.path}", timeout_s=0.3))
    with gate.closed():
        assert asking("here it") == "it"  # the other model is still busy
    threads[0].join()
    assert isinstance(outcomes[0], serving.DeadlineExceeded)
    assert asking("ask say it") == "SAY IT"


def test_threads_of_a_handler_get_each_its_own_answer(asking):
    calls = [lambda name=name: asking(f"threads {name}") for name in "abc"]
    threads, outcomes = at_once(*calls)
    for thread in threads:
        thread.join()
    expected = [" ".join(f"SAY {name}{each}" for each in range(32)) for name in "ABC"]
    assert outcomes == expected


def test_thread_that_outlives_its_call_is_refused(asking, gate):
    assert asking(f"leave {gate.path}") == "left"
    assert asking("here it") == "it"
    assert asking("left say two") == "DeadlineExceeded Unavailable SAY TWO"
    assert asking("early say three") == "SAY THREE"


def test_input_that_no_model_takes_costs_no_process(asking):
    assert asking("strange") == "expected an array for text, got one of complex128"


def test_version_with_other_inputs_waits_for_a_restart(served, network, tmp_path):
    text = (
        "import serving\nimport numpy as np\n\nclass Around(serving.Handler):\n"
        "    inputs = {'NAME': serving.Text()}\n\n    def preprocess(self, NAME):\n"
        "        return np.full((len(NAME), 4), VALUE, 'float32')\n"
    )

    def publish(version, name):
        folder = tmp_path / "net" / f"new-{version}"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(network.read_bytes())
        code = text.replace("NAME", name).replace("VALUE", version)
        (folder / "handler.py").write_text(code)
        folder.rename(tmp_path / "net" / version)

    publish("1", "text")
    server, client = served(models=str(tmp_path), allow_handlers=True, reload_interval="0.1")
    first = client.infer("net", {"text": ["a"]})
    publish("2", "words")
    wait_until(lambda: "has another signature (words BYTES" in server.errors)
    assert client.infer("net", {"text": ["a"]}).model_version == "1"
    publish("3", "text")  # its own handler, of the same inputs
    wait_until(lambda: client.infer("net", {"text": ["a"]}).model_version == "3")
    np.testing.assert_allclose(client.infer("net", {"text": ["a"]})["y"], 3 * first["y"], rtol=1e-5)


def test_rows_of_several_calls_go_together_and_are_cut_apart(alone, gate, num_waiting):

    def ask(*texts):
        return lambda: alone.infer("joined", {"text": [*texts]})

    first, _ = at_once(ask(f"wait {gate.path}"))
    with gate.closed():
        more, outcomes = at_once(ask("a", "b"), ask("c"), ask("bad"), ask("d"))
        wait_until(lambda: num_waiting() == 5)
    for thread in first + more:
        thread.join()
    answers = [outcomes[place]["answer"].tolist() for place in (0, 1, 3)]
    assert answers == [["A", "B"], ["C"], ["D"]]
    assert isinstance(outcomes[2], serving.InvalidRequest)
    first, _ = at_once(ask(f"wait {gate.path}"))
    with gate.closed():
        more, outcomes = at_once(ask("a", "b"), ask("c"))
        wait_until(lambda: num_waiting() == 3)
    for thread in first + more:
        thread.join()
    assert [each["rows"].tolist() for each in outcomes] == [[3, 3], [3]]


def test_calls_of_a_batch_that_crashed_are_tried_alone(alone, gate, num_waiting):

    def ask(*texts):
        return lambda: alone.infer("joined", {"text": [*texts]})

    first, _ = at_once(ask(f"wait {gate.path}"))
    with gate.closed():
        more, outcomes = at_once(ask("a"), ask("die"), ask("c"))
        wait_until(lambda: num_waiting() == 3)
    for thread in first + more:
        thread.join()
    assert isinstance(outcomes[1], serving.ModelError)
    assert [outcomes[place]["answer"].tolist() for place in (0, 2)] == [["A"], ["C"]]


def test_versions_with_handlers_have_a_canary_and_labels(served, network, tmp_path):
    for version in ("1", "2"):
        save_version(
            tmp_path / "net" / version,
            network,
            "    outputs = {'said': serving.Text()}\n\n"
            "    def preprocess(self, text):\n"
            "        return np.zeros((len(text), 4), 'float32')\n\n"
            f"    def postprocess(self, y):\n        return ['by {version}'] * len(y)\n",
        )
    server, client = served(
        models=str(tmp_path), allow_handlers=True, canary="50%", handler_processes=1,
        reload_interval="0.1",
    )  # fmt: skip

    def said(version=""):
        found = client.infer("net", {"text": ["a"]}, version=version)
        assert found["said"].tolist() == [f"by {found.model_version}"]
        return found.model_version

    wait_until(lambda: {said() for _ in range(20)} == {"1", "2"})
    assert (said("stable"), said("canary"), said("2")) == ("1", "2", "2")
    (tmp_path / "net" / "labels.json").write_text('{"stable": "2", "older": "1"}')
    wait_until(lambda: {said() for _ in range(20)} == {"2"})
    assert (said("stable"), said("older")) == ("2", "1")
    assert "ERROR" not in server.errors

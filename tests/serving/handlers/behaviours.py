"""Handlers that do what a call's text says, good and bad."""

# ruff: noqa: RUF012

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import serving

_eaten = []


class Behaviours(serving.Handler):
    """Answers a text, in whichever way it asks for."""

    inputs = {"text": serving.Text()}
    outputs = {
        "answer": serving.Text(),
        "pid": serving.Array("int64"),
        "calls": serving.Array("int64"),
    }

    def setup(self, folder):
        self.num_calls = 0

    def predict(self, text):
        self.num_calls += 1
        self.metrics.count("calls", word=text[0].partition(" ")[0])
        self.metrics.observe("letters", len(text[0]))
        word, _, rest = text[0].partition(" ")
        answers = getattr(self, f"do_{word}")(rest) or [each.upper() for each in text]
        numbers = np.full(len(text), os.getpid())
        return {"answer": answers, "pid": numbers, "calls": np.full(len(text), self.num_calls)}

    def do_say(self, rest):
        """Answer."""

    def do_refuse(self, rest):
        raise serving.InvalidRequest(rest)

    def do_raise(self, rest):
        raise ValueError(rest)

    def do_exit(self, rest):
        os._exit(int(rest))

    def do_kill(self, rest):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_wait(self, rest):
        with open(rest) as pipe:  # until its other end is closed
            pipe.read()

    def do_hang(self, rest):
        while True:
            pass

    def do_eat(self, rest):
        _eaten.append(b"\1" * int(rest))

    def do_log(self, rest):
        logging.getLogger("mine").warning("logged %s", rest)
        print("printed", rest)

    def do_write(self, rest):
        return ["ä" * int(rest)]

    def do_surrogate(self, rest):
        return ["\ud800"]

    def do_refuse_surrogate(self, rest):
        raise serving.InvalidRequest("\ud800")

    def do_token(self, rest):
        return [",".join(name for name in os.environ if name.startswith("SERVING_"))]

    def do_fork(self, rest):
        """Start a child that has all that this process has, and leave it behind."""
        if (child := os.fork()) == 0:
            signal.alarm(30)  # the end of one that has left
            if rest == "leave":
                os.setsid()
            elif rest:
                _eaten.append(b"\1" * int(rest))
            signal.pause()
        return [str(child)]

    def do_fork_and_exit(self, rest):
        self.do_fork(rest)
        os._exit(0)

    def do_close(self, rest):
        os.closerange(3, 256)

    def do_less(self, rest):
        return ["one", "two", "three"]


class Around(serving.Handler):
    """Texts to the rows of a model of four numbers, and back."""

    inputs = {"text": serving.Text(), "bias": serving.Array("float32", (2,))}
    outputs = {"text": serving.Text(), "y": serving.Array("float32", (3,))}

    def preprocess(self, text, bias):
        lengths = np.array([[len(each), each.count("a")] for each in text])
        return {"x": np.hstack([lengths, bias])}, text

    def postprocess(self, y, state):
        return {"text": [f"{each}!" for each in state], "y": y}


class Crops(serving.Handler):
    """As many rows of the model as a text has letters."""

    inputs = {"text": serving.Text()}
    outputs = {"sum": serving.Array("float64", (-1,))}

    def preprocess(self, text):
        return np.array([[ord(each)] * 4 for each in text[0]], np.float32).reshape(-1, 4)

    def postprocess(self, y):
        return y.sum(axis=1)[None]


class Joined(serving.Handler):
    """Says how many rows it has seen at once."""

    inputs = {"text": serving.Text()}
    outputs = {"answer": serving.Text(), "rows": serving.Array("int64")}
    batching = True

    def predict(self, text):
        if text[0].startswith("wait "):
            Behaviours().do_wait(text[0][5:])
        if "bad" in text:
            raise serving.InvalidRequest("a bad text")
        if "die" in text:
            os._exit(1)
        return {"answer": [each.upper() for each in text], "rows": np.full(len(text), len(text))}


class Facts(serving.Handler):
    """Answers the options of its call."""

    inputs = {"data": serving.Bytes()}
    outputs = {"data": serving.Bytes(), "parameters": serving.Text(), "tenant": serving.Text()}

    def predict(self, data, parameters, metadata):
        texts = [",".join(f"{name}={each!r}" for name, each in sorted(parameters.items()))]
        return {
            "data": [each[::-1] for each in data],
            "parameters": texts * len(data),
            "tenant": [f"{metadata.get('x-tenant')} {metadata.get('authorization')}"] * len(data),
        }


class Tenants(serving.Handler):
    """Answers a header of its call."""

    inputs = {"x": serving.Array("float32", (2,))}
    outputs = {"tenant": serving.Text()}

    def predict(self, x, metadata):
        return {"tenant": [f"{metadata['x-tenant']} {row.sum():g}" for row in x]}


class Sizes(serving.Handler):
    """The size of pictures, and their mean colours."""

    inputs = {"picture": serving.Picture()}
    outputs = {"size": serving.Array("int64", (2,)), "colour": serving.Array("uint8", (3,))}

    def predict(self, picture):
        return {
            "size": [each.shape[:2] for each in picture],
            "colour": [each.mean(axis=(0, 1)).astype("uint8") for each in picture],
        }


class Cascade(serving.Handler):
    """Asks another model."""

    inputs = {"text": serving.Text()}
    outputs = {"answer": serving.Text()}
    uses = ("behaviours",)

    def predict(self, text):
        return self.models.infer("behaviours", {"text": text})["answer"].tolist()


class Asks(serving.Handler):
    """Asks another model as a call's text says: from threads, from one left over, or not at all."""

    inputs = {"text": serving.Text()}
    outputs = {"answer": serving.Text()}
    uses = ("behaviours",)

    def setup(self, folder):
        self.left, self.early = [], self.models.infer

    def predict(self, text):
        word, _, rest = text[0].partition(" ")
        return [getattr(self, f"do_{word}")(rest)]

    def ask(self, text, infer=None):
        try:
            return (infer or self.models.infer)("behaviours", {"text": [text]})["answer"][0]
        except serving.ServingError as err:
            return type(err).__name__

    def do_here(self, rest):
        return rest

    def do_ask(self, rest):
        return self.ask(rest)

    def do_early(self, rest):
        return self.ask(rest, self.early)

    def do_strange(self, rest):
        try:
            self.models.infer("behaviours", {"text": np.array([1j])})
        except serving.InvalidRequest as err:
            return str(err)

    def do_threads(self, rest):
        with ThreadPoolExecutor(8) as pool:
            return " ".join(pool.map(self.ask, [f"say {rest}{each}" for each in range(32)]))

    def do_leave(self, rest):
        infer = self.models.infer
        text = f"wait {rest}"
        thread = threading.Thread(target=lambda: self.left.append(self.ask(text, infer)))
        thread.start()
        self.gate = open(rest, "w")  # noqa: SIM115 - until `do_left`; once the other model reads it
        self.thread, self.infer = thread, infer
        return "left"

    def do_left(self, rest):
        self.thread.join()
        self.gate.close()
        return " ".join([*self.left, self.ask(rest, self.infer), self.ask(rest)])


class Documents(serving.Handler):
    """JSON in and out, and pairs of texts."""

    inputs = {"document": serving.Json()}
    outputs = {"document": serving.Json(), "pair": serving.Text((2,))}
    batching = True

    def predict(self, document):
        return {
            "document": [{"got": each} if each != "nan" else float("nan") for each in document],
            "pair": [["\ud800" if each == "strange" else "a", str(each)] for each in document],
        }


class Pairs(serving.Handler):
    """Texts of a shape."""

    inputs = {"pair": serving.Text((2,))}
    outputs = {"text": serving.Text()}

    def predict(self, pair):
        return ["-".join(each) for each in pair]


class Shares(serving.Handler):
    """Probabilities."""

    inputs = {"text": serving.Text()}
    outputs = {"shares": serving.Array("float32", (3,))}

    def predict(self, text):
        return [[0.1, 0.7, 0.2]] * len(text)


class Doubles(serving.Handler):
    """Twice the numbers, of which several calls' rows go together."""

    inputs = {"x": serving.Array("float32", (3,))}
    outputs = {"y": serving.Array("float32", (3,))}
    batching = True

    def predict(self, x):
        return 2 * x


class Teller(serving.Handler):
    """Tells what another model does, in capitals, up to a word."""

    inputs = {"prompt": serving.Text()}
    outputs = {"token": serving.Text()}
    uses = ("story", "behaviours")

    def predict(self, prompt):
        if prompt[0].startswith("say"):
            for part in self.models.stream("behaviours", {"text": prompt}):
                yield {"token": part["answer"]}
            return
        for part in self.models.stream("story", {"prompt": prompt}):
            token = part["token"][0]
            if token == "stop":
                break
            yield {"token": [token.upper()] * len(prompt)}


class Story(serving.Handler):
    """Answers a text word by word, in whichever way they ask for."""

    inputs = {"prompt": serving.Text()}
    outputs = {"token": serving.Text(), "open": serving.Array("int64")}

    def setup(self, folder):
        self.num_open = 0

    def predict(self, prompt):
        self.num_open += 1
        try:
            for word in prompt[0].split():
                verb, _, rest = word.partition(":")
                if hasattr(self, f"do_{verb}"):
                    getattr(self, f"do_{verb}")(rest)
                    continue
                number = int(rest) if verb in ("many", "long") else 1
                for each in range(number):
                    text = f"{each}" + "x" * 65536 * (verb == "long") if rest else word
                    count = np.full(len(prompt), self.num_open)
                    yield {"token": [text] * len(prompt), "open": count}
        finally:
            self.num_open -= 1

    do_refuse, do_raise = Behaviours.do_refuse, Behaviours.do_raise
    do_exit, do_wait = Behaviours.do_exit, Behaviours.do_wait

    def do_huge(self, rest):
        """Say nothing: a word for a caller's limits."""

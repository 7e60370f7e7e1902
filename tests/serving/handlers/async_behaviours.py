"""Handlers with `async def` that do what a call's text says, good and bad."""

# ruff: noqa: RUF012

import asyncio
import os
import time

import numpy as np

import serving
from tests.serving.handlers.behaviours import Behaviours


class Tasks(serving.Handler):
    """Answers a text, in whichever way it asks for."""

    inputs = {"text": serving.Text()}
    outputs = {"answer": serving.Text(), "pid": serving.Array("int64")}
    uses = ("behaviours", "story")

    async def setup(self, folder):
        self.loop = asyncio.get_running_loop()
        self.here, self.num_here = asyncio.Event(), 0
        self.num_cancelled = self.num_hanging = 0
        self.left = asyncio.create_task(asyncio.sleep(0, "nothing"))

    async def predict(self, text):
        assert asyncio.get_running_loop() is self.loop
        word, _, rest = text[0].partition(" ")
        answer = await getattr(self, f"do_{word}")(rest)
        number = np.full(len(text), os.getpid())
        said = text[0].upper() if answer is None else str(answer)
        return {"answer": [said] * len(text), "pid": number}

    async def do_say(self, rest):
        """Answer."""

    async def do_sleep(self, rest):
        await asyncio.sleep(float(rest))

    async def do_meet(self, rest):
        """Answer once as many calls are here at a time."""
        self.num_here += 1
        if self.num_here == int(rest):
            self.here.set()
        await self.here.wait()

    async def do_gate(self, rest):
        """Read a pipe until its other end is closed."""
        await asyncio.to_thread(Behaviours().do_wait, rest)

    async def do_hang(self, rest):
        self.num_hanging += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_hanging -= 1

    async def do_hanging(self, rest):
        return self.num_hanging

    async def do_cancelled(self, rest):
        return self.num_cancelled

    async def do_block(self, rest):
        while True:
            time.sleep(0.01)

    async def do_refuse(self, rest):
        raise serving.InvalidRequest(rest)

    async def do_raise(self, rest):
        raise ValueError(rest)

    async def do_raise_cancelled(self, rest):
        raise asyncio.CancelledError

    async def do_cancel_itself(self, rest):
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async def do_exit(self, rest):
        os._exit(int(rest))

    async def ask(self, text):
        outputs = await self.async_models.infer("behaviours", {"text": [text]})
        return outputs["answer"][0]

    do_ask = ask

    async def do_asks(self, rest):
        """Ask from tasks of its own, and from threads."""
        numbers = range(16)
        threads = (asyncio.to_thread(self.ask_at_once, f"say t{each}") for each in numbers)
        return " ".join(
            await asyncio.gather(*(self.ask(f"say {each}") for each in numbers), *threads)
        )

    def ask_at_once(self, text):
        return self.models.infer("behaviours", {"text": [text]})["answer"][0]

    async def do_ask_at_once(self, rest):
        return self.ask_at_once(rest)

    async def do_ask_long(self, rest):
        try:
            return await self.ask(rest)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    async def do_tell(self, rest):
        """Stream another model, and leave it behind its second part."""
        found = []
        async for part in self.async_models.stream("story", {"prompt": [rest]}):
            found.append(part["token"][0])
            if len(found) == 2:
                break
        return " ".join(found)

    async def do_leave(self, rest):
        async def later():
            await self.here.wait()
            return await self.ask("say it")

        self.left = asyncio.create_task(later())

    async def do_left(self, rest):
        self.here.set()
        try:
            return await self.left
        except serving.Unavailable as err:
            return err


class AsyncJoined(serving.Handler):
    """Says how many rows it has seen at once, and refuses one."""

    inputs = {"text": serving.Text()}
    outputs = {"answer": serving.Text(), "rows": serving.Array("int64")}
    batching = True

    async def predict(self, text):
        await asyncio.sleep(0.001)
        if "bad" in text:
            raise serving.InvalidRequest("a bad text")
        return {"answer": [each.upper() for each in text], "rows": np.full(len(text), len(text))}


class AsyncAround(serving.Handler):
    """Texts to the rows of a model of four numbers, and back; one method waits, one does not."""

    inputs = {"text": serving.Text(), "bias": serving.Array("float32", (2,))}
    outputs = {"text": serving.Text(), "y": serving.Array("float32", (3,))}

    def setup(self, folder):
        self.loop = asyncio.get_running_loop()

    def preprocess(self, text, bias):
        lengths = np.array([[len(each), each.count("a")] for each in text])
        return {"x": np.hstack([lengths, bias])}, text

    async def postprocess(self, y, state):
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0.001)
        return {"text": [f"{each}!" for each in state], "y": y}


class AsyncStory(serving.Handler):
    """Answers a text word by word, in whichever way they ask for."""

    inputs = {"prompt": serving.Text()}
    outputs = {"token": serving.Text(), "open": serving.Array("int64")}

    def setup(self, folder):
        self.num_open, self.endings = 0, []

    async def predict(self, prompt):
        self.num_open += 1
        try:
            for word in prompt[0].split():
                verb, _, rest = word.partition(":")
                if verb in ("hang", "gate"):
                    await getattr(Tasks, f"do_{verb}")(self, rest)
                    continue
                if verb in ("refuse", "raise", "exit"):
                    await getattr(Tasks, f"do_{verb}")(self, rest)
                for each in range(int(rest) if verb == "many" else 1):
                    await asyncio.sleep(0)
                    text = str(each) if rest else word
                    count = np.full(len(prompt), self.num_open)
                    yield {"token": [text] * len(prompt), "open": count}
        finally:
            await asyncio.sleep(0)  # may wait
            self.num_open -= 1

    num_cancelled = num_hanging = 0

"""A path that answers files: those of a form, or the body itself, each by a call of one model.

body ──▶ files ──▶ decode ──▶ the model's queue ──▶ finish ──▶ the path's answer
         pool      pool        batches, deadline     the loop; the pool, if outputs are large
"""

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.batching.run import Rows
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError
from serving.model.loaded import LoadedModel
from serving.pictures.classifier import Decoded, Steps
from serving.router import Route, Router
from serving.tensors import Array
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, RoutedRequest

MAX_BODY_BYTES = 32 << 20
"""Pictures of one request, such as a phone's of 48 megapixels."""
MAX_FILES = 100
MAX_FORM_S = 20.0
"""The time for the files of a form."""
_FORM = "multipart/form-data"
_FEW_BYTES = 32 << 10
"""The most of a model's outputs that the loop itself hands to `finish`."""
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a warning for each bad form

_Made = TypeVar("_Made")
Outputs = Mapping[str, Array]
Parameters = Mapping[str, Any]


class Chosen(NamedTuple):
    """What answers a request."""

    steps: Steps
    """The functions before the model, and behind it."""
    about: Any
    """Plain data for them."""
    route: Route
    """The model."""
    model: LoadedModel
    """The version of it, for all files."""


class Answered(NamedTuple):
    """The outcome of a request."""

    chosen: Chosen
    files: Sequence[tuple[str, Outputs | ServingError]]
    """For each file its name, and what `finish` made; in a form the reason if there is nothing."""
    version: str | None
    """The version that has run; None if none has."""


class FilesPath:
    """Answers a path beside a model; subclasses say by which steps, and write the answer."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def find(self, plan: RoutedRequest, share: float) -> Chosen:
        """Choose the steps of a request, and the version of its model.

        Args:
            plan: the request.
            share: see `ModelVersions.choose`.

        Raises:
            ServingError: there is none.
        """
        raise NotImplementedError

    async def parameters(self, call: Exchange) -> Parameters:
        """Return the parameters of a request, checked before its files are read.

        Raises:
            InvalidRequest: one is wrong.
        """
        return {}

    async def write(self, call: Exchange, answered: Answered, parameters: Parameters) -> Answer:
        """Write the answer."""
        raise NotImplementedError

    async def answer(self, call: Exchange) -> Answer:
        """Answer a request: the handler of an `Endpoint`."""
        parameters = await self.parameters(call)
        return await self.write(call, await self.answered(call, parameters), parameters)

    async def answered(self, call: Exchange, parameters: Parameters) -> Answered:
        """Have the files of a request handled, all for one version.

        Raises:
            ServingError: the request is refused, or its only file is.
        """
        share = random.random()  # a canary has all of a form's files, or none
        while True:
            chosen = self.find(call.plan, share)
            version: str | None = None
            files: list[tuple[str, Outputs | ServingError]] = []
            async for name, read in read_files(call, chosen.steps.decode, chosen.about):
                if not self._is_served(chosen):
                    break  # another version took over meanwhile, and takes other inputs perhaps
                found: Outputs | ServingError
                if isinstance(read, ServingError):
                    found = read
                else:
                    found, ran = await self.finished(call, chosen, read)
                    version = ran or version
                files.append((name, found))
            else:
                return Answered(chosen, files, version)

    def _is_served(self, chosen: Chosen) -> bool:
        versions = self.router.find(chosen.route.name).versions.versions
        return versions.get(chosen.model.version) is chosen.model

    async def finished(
        self, call: Exchange, chosen: Chosen, decoded: Decoded
    ) -> tuple[Outputs, str | None]:
        """Have a version run, and return what `finish` makes; and the version, if it has run."""
        outputs, version = await self._run(call, chosen, decoded.inputs)
        work = chosen.steps.finish, chosen.about, outputs, decoded.state
        size = sum(each.nbytes for each in outputs)
        found: Outputs = await call.work(*work, size=size, few_bytes=_FEW_BYTES)
        return found, version

    async def _run(
        self, call: Exchange, chosen: Chosen, inputs: Sequence[Array]
    ) -> tuple[Sequence[Array], str | None]:
        """Have rows run by a version, in as many calls as a request's limit needs."""
        model = chosen.model
        tensors, target = model.tensors, chosen.route.find(model.version)
        if not tensors.is_batchable:
            outputs, result = await call.run(tuple(inputs), Rows(target, None, 1), call.deadline_s)
            return outputs, result.version
        parts, version, limit = [], None, self.router.batching.max_request_rows
        for start in range(0, len(inputs[0]), limit):
            rows = [each[start : start + limit] for each in inputs]
            message = rows[0].tobytes() if tensors.row_bytes else tuple(rows)
            encoder = Rows(target, None, len(rows[0]))
            outputs, result = await call.run(message, encoder, call.deadline_s)
            version = result.version
            parts.append(outputs)
        if not parts:  # a page without a crop
            return [each.no_rows() for each in tensors.outputs], None
        columns = zip(*parts, strict=True)
        return [each[0] if len(each) == 1 else np.concatenate(each) for each in columns], version


async def read_files(
    call: Exchange, decode: Callable[[Any, bytes], _Made], about: Any = None
) -> AsyncIterator[tuple[str, _Made | ServingError]]:
    """Have the files of a body read: those of a form, or the body itself.

    Each is read once the one before is answered, so that other callers have their turn.

    Args:
        call: the request.
        decode: a function of a module, called in a process with `about` and a file.
        about: plain data.

    Yields:
        The name of each, and its outcome, or in a form the reason if there is none.

    Raises:
        InvalidRequest: the form is malformed, has no file or too many, or the body is empty, or the
            only file can't be read.
    """
    body, kind = call.body, call.plan.get("content-type")
    if media_type(kind) != _FORM:
        if not body:
            raise InvalidRequest("expected a picture, got an empty body")
        yield "", await call.work(decode, about, body)
        return
    end_s = time.monotonic() + MAX_FORM_S
    for name, start, end in await call.work(find_files, body, kind):
        if time.monotonic() > end_s:
            raise DeadlineExceeded(f"the pictures of a form take more than {MAX_FORM_S:g} s")
        try:
            yield name, await call.work(decode, about, body[start:end])
        except InvalidRequest as err:
            yield name, err


def find_files(body: bytes, kind: str) -> list[tuple[str, int, int]]:
    """Find a form's files: the name of each, and where in the body it begins and ends."""
    form = _Form(body)
    try:
        boundary = parse_options_header(kind)[1][b"boundary"]
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (FormParserError, KeyError, ValueError) as err:
        reason = " ".join(str(err).split())[:80]
        raise InvalidRequest(f"expected a form with pictures: {reason}") from err
    if not form.files:
        raise InvalidRequest("expected a form with at least 1 file, got none")
    return form.files


class _Form:
    """Finds the parts of a form."""

    def __init__(self, body: bytes) -> None:
        self.files: list[tuple[str, int, int]] = []
        self._body = body
        self._num_parts = 0

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} parts")
        self._field = self._value = b""
        self._name: str | None = None
        self._start, self._size = 0, 0

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            if b"filename" in options:
                self._name = options[b"filename"].decode("utf-8", "replace")
        self._field = self._value = b""

    def _add(self, data: bytes, start: int, end: int) -> None:
        if data is self._body and not self._start:  # else it only begins like a boundary
            self._start = start - self._size
        self._size += end - start

    def _end(self) -> None:
        if self._name is not None:
            self.files.append((self._name, self._start, self._start + self._size))


def media_type(kind: str) -> str:
    """Return the type of a body, such as image/png."""
    return kind.partition(";")[0].strip().lower()

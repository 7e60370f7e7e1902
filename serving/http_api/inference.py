"""Inference by the Open Inference Protocol v2 over HTTP, as tritonclient and KServe send it."""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.batching.entry import Entry
from serving.batching.run import answer_bytes
from serving.errors import InvalidRequest, ModelError, Unsupported
from serving.http1.requests import Headers
from serving.http2 import Pieces, Written
from serving.http2.pieces import Buffer
from serving.http_api.queries import MODEL_PATHS
from serving.oip import generate, infer, predict, rest
from serving.oip.encoder import VALUES, InferEncoder, Writer
from serving.oip.long_values import is_long
from serving.oip.request import InferAnswer, Sent, SentInput
from serving.oip.rest import Unwritten
from serving.protocols.known import KnownRequest, ValuesPlace
from serving.router import Route, Router
from serving.tensors import TensorSignature
from serving.transports.http_port import Exchange
from serving.transports.http_routing import (
    EVENTS,
    Answer,
    Endpoint,
    RoutedRequest,
    encode_rest,
    encode_start,
)
from serving.transports.port_limits import max_message_bytes

LENGTH_HEADER = "inference-header-content-length"
_MEDIA = ("image", "audio", "video")
"""Types of files."""
_NUM_PEEKED = 64
"""Bytes of a body that are looked at, to see whether it is JSON."""
_INLINE_BYTES = 128 << 10
"""The longest JSON that the loop reads itself, in up to 1.4 ms; a process reads longer ones."""
_KNOWN_BYTES, _TURN_BYTES = 1 << 20, 32 << 10
"""The longest JSON of which the loop reads the values if it knows the rest, and how much of it in
one turn, in up to 0.2 ms."""
_INLINE_OUTPUT_BYTES = 64 << 10
"""The most bytes of outputs that the loop writes as JSON, in up to 0.5 ms."""


class Inference:
    """Answers the paths that run a model."""

    def __init__(self, router: Router, max_json_bytes: int) -> None:
        """Serve the models of `router`; `max_json_bytes` limits the JSON of a request."""
        self._max_json_bytes = max_json_bytes
        self._router = router

    def routes(self) -> list[Endpoint]:
        """Return the routes, with and without a version."""
        return [
            *(
                Endpoint(method, f"{model}/infer", self._infer, self._max_bytes, is_work=True)
                for model in MODEL_PATHS
                for method in ("POST", "PUT")
            ),
            *(
                Endpoint(
                    "POST",
                    f"{model}/{verb}",
                    handler,
                    self._max_json_bytes,
                    is_work=True,
                    name="HttpGenerate",
                )
                for model in MODEL_PATHS
                for verb, handler in (
                    ("generate", self._generate),
                    ("generate_stream", self._generate_stream),
                )
            ),
            # KServe's first protocol, for clients that still speak it.
            Endpoint(
                "POST",
                "/v1/models/{name}",
                self._predict,
                self._max_bytes,
                is_work=True,
                name="HttpPredict",
            ),
        ]

    async def _predict(self, call: Exchange) -> Answer:
        name = _predicted(call.plan)
        target, signature = infer.find(self._router, name, "")
        _require_one_answer(name, signature)
        inputs = [(each.name, each.datatype) for each in signature.inputs]
        work = predict.read, call.body, inputs, _of_bytes(signature)
        sent = await call.work(*work, size=len(call.body), few_bytes=_INLINE_BYTES)
        asked = infer.ask(self._router, target, signature, sent, name)
        answer = await _run(call, asked, call.deadline_s)
        if _has_long_texts(answer):
            return Answer(Pieces(await _write_values(call, predict.outline(answer))))
        return Answer(await _write(call, predict.write, answer))

    async def _generate(self, call: Exchange) -> Answer:
        """Answer a request of Triton's generate extension by one answer."""
        asked, identifier = await self._generated(call)
        _require_one_answer(call.plan.params["name"], asked.signature)
        answer = await _run(call, asked, call.deadline_s, identifier)
        return Answer(await _write(call, generate.write, answer))

    async def _generate_stream(self, call: Exchange) -> Answer:
        """Answer the same by an event for each part."""
        asked, identifier = await self._generated(call)
        encoder = InferEncoder(
            asked.target,
            None,
            asked.request,
            VALUES,
            identifier,
            in_parts=asked.signature.in_parts,
        )
        async for part in call.run_in_parts(asked.rows, encoder, call.deadline_s):
            content = await _write(call, generate.write, part)
            await call.send(generate.event(content), EVENTS)
        return Answer(b"", EVENTS)  # the end; all of it, if there was no part

    async def _generated(self, call: Exchange) -> tuple[infer.Asked, str]:
        name, version = call.plan.params["name"], call.plan.params.get("version", "")
        target, signature = infer.find(self._router, name, version)
        inputs = [(each.name, each.datatype, len(each.shape)) for each in signature.inputs]
        work = generate.read, call.body, inputs, _of_bytes(signature)
        sent: Sent = await call.work(*work, size=len(call.body), few_bytes=_INLINE_BYTES)
        return self._ask(call, target, signature, sent), sent.id

    def _max_bytes(self, plan: RoutedRequest) -> int:
        name, version = plan.params["name"], plan.params.get("version", "")
        name = _predicted(plan) if plan.request.target.startswith("/v1") else name
        infer.find(self._router, name, version)
        binary = 0 if self._json_bytes(plan) is None else max_message_bytes(self._router)
        return self._max_json_bytes + binary

    def _json_bytes(self, plan: RoutedRequest) -> int | None:
        """Return how many bytes of a body are JSON; None for all."""
        text, most = plan.get(LENGTH_HEADER), self._max_json_bytes
        if not text:
            return None
        if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > most:
            raise InvalidRequest(
                f"expected {LENGTH_HEADER} as bytes, at most {most}, got {text[:40]!r}"
            )
        return int(text)

    async def _infer(self, call: Exchange) -> Answer:
        name, version = call.plan.params["name"], call.plan.params.get("version", "")
        target, signature = infer.find(self._router, name, version)
        _require_one_answer(name, signature)
        known = call.plan.known
        if known is not None and known.encoder.target is not target:
            known = call.plan.known = None
        if known is not None and (rows := await _rows_of(call, known.place)) is not None:
            return await _reply(call, await call.run(rows, known.encoder, call.deadline_s))
        received_s, place = time.monotonic(), None
        if known is None and is_raw(call.plan, signature):  # what is known is not
            sent = _sent_raw(call.body, signature)
        elif known is None and is_form(call.plan, signature):
            return await self._infer_files(call, target, signature)
        else:
            sent, place = await self._sent(call, signature)
        asked = self._ask(call, target, signature, sent)
        if place is not None and not version:
            _learn(call, sent, place, asked)
        timeout_s = asked.request.timeout_s
        left_s = math.inf if timeout_s is None else timeout_s
        deadline_s = min(call.deadline_s, received_s + left_s)
        return await _reply(call, await _run(call, asked, deadline_s, sent.id))

    def _ask(
        self, call: Exchange, target: "Route | Entry", signature: TensorSignature, sent: Sent
    ) -> infer.Asked:
        """Compare a request with its model; the options of its query are parameters, too."""
        asked = infer.ask(self._router, target, signature, sent, call.plan.params["name"])
        if not call.plan.query:
            return asked
        options = {name: values[-1] for name, values in call.plan.query.items()}
        parameters = {**options, **asked.request.parameters}
        return asked._replace(request=asked.request._replace(parameters=parameters))

    async def _sent(
        self, call: Exchange, signature: TensorSignature
    ) -> tuple[Sent, ValuesPlace | None]:
        """Read a request of JSON, and where its values stand, if later ones may differ in these."""
        body = call.body
        _check_json(body, signature)
        json_bytes = self._json_bytes(call.plan)
        size = len(body) if json_bytes is None else json_bytes
        may_learn = call.plan.known is None and size <= _KNOWN_BYTES
        may_learn &= json_bytes is not None or signature.row_bytes > 0
        work = read_sent, body, json_bytes, _of_bytes(signature), may_learn
        found: tuple[Sent, ValuesPlace | None] = await call.work(
            *work, size=size, few_bytes=_INLINE_BYTES
        )
        return found

    async def _infer_files(
        self, call: Exchange, target: "Route | Entry", signature: TensorSignature
    ) -> Answer:
        """Answer a form of files, each as if it had come alone, in their order."""
        # Late: a server that gets no forms needs none of it.
        from serving.http_api.files_path import MAX_FORM_S, find_files

        items, end_s = [], min(call.deadline_s, time.monotonic() + MAX_FORM_S)
        files = await call.work(find_files, call.body, call.plan.get("content-type"))
        for file, start, end in files:
            try:
                sent = _sent_raw(call.body[start:end], signature)
                asked = self._ask(call, target, signature, sent)
                answer = await _reply(call, await _run(call, asked, end_s))
                item = bytes(answer.body)
            except (InvalidRequest, ModelError) as err:  # of this file
                item = json.dumps({"error": str(err)}).encode()
            items.append(b'{"name":%b,%b' % (json.dumps(file).encode(), item[1:]))
        return Answer(b'{"files":[%b]}' % b",".join(items))


def _require_one_answer(name: str, signature: TensorSignature) -> None:
    """Raise InvalidRequest if a model answers in parts."""
    if signature.in_parts:
        raise InvalidRequest(
            f"model {name} answers in parts: POST /v2/models/{name}/generate_stream, or call "
            "ModelStreamInfer over gRPC"
        )


def _of_bytes(signature: TensorSignature) -> frozenset[str]:
    """Return the names of the inputs that are bytes, which JSON has as base64."""
    return frozenset(each.name for each in signature.inputs if each.is_binary)


def _sent_raw(body: bytes, signature: TensorSignature) -> Sent:
    """Return a request whose body is the only input's value, a text or a file.

    Raises:
        InvalidRequest: it is no text.
    """
    (tensor,) = signature.inputs
    value = np.empty(1, object)
    value[0] = body
    if not tensor.is_binary:
        try:
            value[0] = body.decode()
        except UnicodeDecodeError as err:
            raise InvalidRequest(f"expected a text in UTF-8: {err.reason}") from err
    shape = [1] * max(1, len(tensor.shape))
    return Sent([SentInput(tensor.name, tensor.datatype, shape)], [value])


def is_raw(plan: RoutedRequest, signature: TensorSignature) -> bool:
    """Return whether a body is the value of a handler's only input.

    Raises:
        InvalidRequest: it can be nothing else, and the model takes no such body.
    """
    kind = plan.get("content-type").partition(";")[0].strip().lower()
    is_put = plan.request.method == "PUT"
    may_be = is_put or kind == "text/plain" or kind.partition("/")[0] in _MEDIA
    may_be |= kind == "application/octet-stream" and not plan.get(LENGTH_HEADER)
    is_one = _takes_a_value(signature)
    if is_put and not is_one:
        raise InvalidRequest("expected JSON by POST: a body as it is needs one input of a handler")
    return may_be and is_one


def is_form(plan: RoutedRequest, signature: TensorSignature) -> bool:
    """Return whether a body is a form of values of a handler's only input, which are files."""
    is_file = _takes_a_value(signature) and signature.inputs[0].is_binary
    kind = plan.get("content-type").partition(";")[0].strip().lower()
    return is_file and kind == "multipart/form-data"


def _takes_a_value(signature: TensorSignature) -> bool:
    """Return whether a body may be the value of a handler's only input, as it is."""
    return len(signature.inputs) == 1 and bool(signature.inputs[0].content)


def _check_json(body: bytes, signature: TensorSignature) -> None:
    """Raise InvalidRequest if a body seems to be the value of a handler's only input.

    As `curl -d 'a good film'` sends it, which calls it a form.
    """
    if body[:_NUM_PEEKED].lstrip()[:1] in (b"{", b"") or not _takes_a_value(signature):
        return
    (tensor,) = signature.inputs
    kind = "application/octet-stream" if tensor.is_binary else "text/plain"
    raise InvalidRequest(
        f"expected a JSON object; to send {tensor.name} as it is, add the header "
        f"content-type: {kind}"
    )


async def _rows_of(call: Exchange, place: ValuesPlace) -> bytes | None:
    """Read the rows of a request of which all else is known; None if it may differ in more."""
    body = call.body
    if not place.datatype:
        return place.rows(body)
    if len(body) > _KNOWN_BYTES:
        return None
    texts = place.parts(body, _TURN_BYTES)
    if max(map(len, texts), default=0) > _INLINE_BYTES:  # a list in the list, which is not cut
        return None
    read: list[tuple[bytes, list[int]]] = []
    for text in texts:
        if read:
            await call.others()
        found = rest.read_values(text, place.datatype)
        if found is None or (read and found[1] != read[0][1]):
            return None
        read.append(found)
    rows = b"".join(raw for raw, _ in read)
    return rows if len(rows) == place.num_bytes else None


def _learn(call: Exchange, sent: Sent, place: ValuesPlace, asked: infer.Asked) -> None:
    """Have only the values read of later requests that differ from this one in these alone."""
    found = infer.values_alone(sent, asked, VALUES.before)
    if found is None or len(found[0]) != place.num_bytes:
        return
    request, layout = asked.request, found[1]
    are_bytes = all(request.as_bytes)
    row_bytes = [each.row_bytes for each in request.tensors]
    is_short = all(row_bytes) and sum(row_bytes) * request.num_rows <= _INLINE_OUTPUT_BYTES
    writer = _RestWriter(call.plan.headers)

    def encoder_of(writer: Writer) -> InferEncoder:
        encoder = InferEncoder(asked.target, None, request, writer, is_repeated=are_bytes)
        encoder.layout = layout
        return encoder

    call.plan.known = KnownRequest(place, encoder_of(writer if are_bytes else VALUES))
    if are_bytes and not place.datatype:
        call.expect_repeats(place, encoder_of(writer))
    elif is_short and place.datatype:
        call.expect_repeats(place, encoder_of(writer), rest.read_rows)


class _RestWriter:
    """Writes answers as `encode_rest` does."""

    def __init__(self, headers: Headers) -> None:
        """Take the answers' own headers."""
        self._headers = headers
        self._start = encode_start(headers)

    def write(self, answer: InferAnswer) -> bytes | Pieces:
        """Write an answer but for its first lines; a long one of bytes from its arrays."""
        if is_long(answer.arrays):
            text, behind = rest.outline(answer)
            return encode_rest(_answer_long(text, behind), self._headers)  # type: ignore[arg-type]
        body, json_bytes = rest.write(answer)
        if json_bytes is None:
            return b"%bcontent-length: %d\r\n\r\n%b" % (self._start, len(body), body)
        return encode_rest(_answer(body, json_bytes), self._headers)

    def before(self, num_bytes: int) -> bytes:
        """Return nothing: the lengths of outputs are in the JSON."""
        return b""


async def _run(
    call: Exchange, asked: infer.Asked, deadline_s: float, identifier: str = ""
) -> InferAnswer:
    """Have a request run, and return the answer as values."""
    encoder = InferEncoder(asked.target, None, asked.request, VALUES, identifier)
    answer: InferAnswer = await call.run(asked.rows, encoder, deadline_s)
    return answer


async def _reply(call: Exchange, answer: "InferAnswer | bytes | Pieces") -> Answer:
    """Write an answer, unless it is written, in a process if it is long."""
    if isinstance(answer, bytes | Pieces):
        return Answer(answer, kind="")
    if _has_long_texts(answer) or (any(answer.request.as_bytes) and is_long(answer.arrays)):
        text, behind = rest.outline(answer)
        return _answer_long(await _write_values(call, text), behind)
    return _answer(*await _write(call, rest.write, answer))


def _has_long_texts(answer: InferAnswer) -> bool:
    """Return whether an answer has texts, and is long."""
    return any(each.dtype == object for each in answer.arrays) and is_long(answer.arrays)


async def _write(call: Exchange, write: Callable[[InferAnswer], Any], answer: InferAnswer) -> Any:
    """Write an answer, in a process if much of it is JSON."""
    forms = zip(answer.arrays, answer.request.as_bytes, strict=True)
    size = sum([answer_bytes(each) for each, as_bytes in forms if not as_bytes])
    return await call.work(write, answer, size=size, few_bytes=_INLINE_OUTPUT_BYTES)


async def _write_values(call: Exchange, text: Sequence[bytes | Unwritten]) -> list[Buffer]:
    """Write the values in a long answer's JSON, texts part by part, with other calls between."""
    found: list[Buffer] = []
    for each in text:
        if isinstance(each, bytes):
            found.append(each)
        elif each.are_texts:
            for part in rest.write_texts(each):
                found.append(part)
                await call.others()
        else:
            size = np.asarray(each.values).nbytes
            work = rest.write_numbers, each
            found.append(await call.work(*work, size=size, few_bytes=_INLINE_OUTPUT_BYTES))
    return found


def _answer_long(text: Sequence[Buffer], behind: Sequence[Buffer | Written]) -> Answer:
    return _answer(Pieces([*text, *behind]), sum(map(len, text)) if behind else None)


def _predicted(plan: RoutedRequest) -> str:
    """Return the model's name of a path that ends with NAME:predict."""
    name, _, verb = plan.params["name"].rpartition(":")
    if verb != "predict":
        raise Unsupported(f"expected /v1/models/NAME:predict, got {plan.params['name'][:80]!r}")
    return name


def read_sent(
    body: bytes, json_bytes: int | None, base64: frozenset[str], learn: bool
) -> tuple[Sent, ValuesPlace | None]:
    """Read a request, as `rest.read` does, in another process perhaps.

    Returns:
        What it says and, if that is to be learned, where its values stand.
    """
    sent = rest.read(body, json_bytes, base64)
    return sent, rest.find_values(body, json_bytes, sent) if learn else None


def _answer(content: bytes | Pieces, json_bytes: int | None) -> Answer:
    if json_bytes is None:
        return Answer(content)
    return Answer(content, "application/octet-stream", headers=[(LENGTH_HEADER, str(json_bytes))])

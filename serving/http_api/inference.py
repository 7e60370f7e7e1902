"""The Open Inference Protocol v2 over HTTP, for tritonclient.http and KServe's clients."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest, ModelError, Unsupported
from serving.http1.requests import Headers
from serving.http2 import Pieces, Written
from serving.http2.pieces import Buffer
from serving.oip import infer, inference_pb, long_json, plain_json, rest
from serving.oip.known_requests import Values, find_values
from serving.oip.long_answers import is_long
from serving.oip.long_json import LongAnswer
from serving.oip.methods import UNSUPPORTED, Queries
from serving.oip.plain_json import ArraysEncoder, PlainRequest
from serving.oip.rest import Form
from serving.oip.tensors import NO_PARAMETERS, InferRows
from serving.oip.typed import check_others
from serving.router import AnyBatcher, Route, Router
from serving.tensors import Array, TensorSignature
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, RoutedRequest, as_json, encode_rest
from serving.transports.limits import max_message_bytes
from serving.transports.pools import Pool

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
    """Answers the protocol's paths below /v2."""

    def __init__(
        self, router: Router, queries: Queries, control: Pool, max_json_bytes: int
    ) -> None:
        """Serve the models of `router`; `queries` answers queries, on `control` slow ones."""
        self._max_json_bytes = max_json_bytes
        self._router = router
        self._queries = queries
        self._control = control

    def routes(self) -> list[Endpoint]:
        """Return the routes, with and without a version."""
        routes = [
            Endpoint("GET", "/v2", self._query("ServerMetadata")),
            Endpoint("GET", "/v2/health/live", self._query("ServerLive")),
            Endpoint("GET", "/v2/health/ready", self._query("ServerReady", ready="ready")),
            Endpoint("GET", "/v2/models/stats", self._query("ModelStatistics")),
            Endpoint("POST", "/v2/repository/index", self._index, 4096),
            *(
                Endpoint("POST", f"/v2/repository/models/{{model_name}}/{verb}", self._change(verb))
                for verb in ("load", "unload")
            ),
            *(Endpoint(method, path, _refusing(text)) for method, path, text in _unsupported()),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Endpoint("GET", model, self._metadata),
                Endpoint("GET", f"{model}/ready", self._query("ModelReady", ready="ready")),
                Endpoint("GET", f"{model}/config", self._query("ModelConfig", inner="config")),
                Endpoint("GET", f"{model}/stats", self._query("ModelStatistics")),
                Endpoint("POST", f"{model}/infer", self._infer, self._max_bytes, is_work=True),
                Endpoint("PUT", f"{model}/infer", self._infer, self._max_bytes, is_work=True),
            ]
        # KServe's first protocol, for clients that still speak it.
        return [
            *routes,
            Endpoint("GET", "/v1/models", self._names),
            Endpoint("GET", "/v1/models/{name}", self._ready),
            Endpoint(
                "POST",
                "/v1/models/{name}",
                self._predict,
                self._max_bytes,
                is_work=True,
                name="HttpPredict",
            ),
        ]

    async def _names(self, _: Exchange) -> Answer:
        return as_json({"models": [*self._router.routes]})

    async def _ready(self, call: Exchange) -> Answer:
        name = call.plan.params["name"]
        infer.find(self._router, name, "")
        return as_json({"name": name, "ready": True})

    async def _predict(self, call: Exchange) -> Answer:
        name = _predicted(call.plan)
        target, signature = infer.find(self._router, name, "")
        inputs = [(each.name, each.datatype) for each in signature.inputs]
        taken, returned = _of_bytes(signature)
        work = rest.read_instances, call.body, name, inputs, taken
        packed = await call.work(*work, size=len(call.body), few_bytes=_INLINE_BYTES)
        message = inference_pb.ModelInferRequest.FromString(packed)
        inference = infer.decode(self._router, target, message, signature)
        encoder = infer.InferEncoder(target, None, inference, name, signature, _as_it_is)
        response = (await call.run(inference.message, encoder, call.deadline_s)).SerializeToString()
        body = await call.work(
            rest.write_predictions,
            response,
            returned,
            size=len(response),
            few_bytes=_INLINE_OUTPUT_BYTES,
        )
        return Answer(body)

    async def _metadata(self, call: Exchange) -> Answer:
        """Describe a model: the protocol's fields, and all other facts as its parameters."""
        question = inference_pb.ModelMetadataRequest(**call.plan.params)
        message = self._queries.model_metadata(question.SerializeToString())
        facts = self._queries.facts(question.name, question.version)
        return as_json(rest.as_json(message) | {"parameters": facts})

    def _query(self, name: str, *, ready: str | None = None, inner: str | None = None) -> Any:
        """Answer a query by the method of this name; readiness by the status alone."""
        answer = self._queries.answers[name]

        async def handler(call: Exchange) -> Answer:
            question = getattr(inference_pb, f"{name}Request")(**call.plan.params)
            message = answer(question.SerializeToString())
            if ready is not None:
                is_ready = getattr(message, ready)
                return as_json({"ready": is_ready}, 200 if is_ready else 503)
            return as_json(rest.as_json(getattr(message, inner) if inner else message))

        return handler

    def _change(self, verb: str) -> Any:
        """Load or unload a model."""
        name = f"RepositoryModel{verb.capitalize()}"
        answer = self._queries.answers[name]

        async def handler(call: Exchange) -> Answer:
            question = getattr(inference_pb, f"{name}Request")(**call.plan.params)
            for parameter in rest.read_parameters(call.body):
                question.parameters[parameter].bool_param = True  # whichever value it has
            await call.work(answer, question.SerializeToString(), pool=self._control)
            return as_json({})

        return handler

    async def _index(self, call: Exchange) -> Answer:
        question = inference_pb.RepositoryIndexRequest()
        if call.body:
            question.ready = rest.read_index(call.body)
        message = self._queries.answers["RepositoryIndex"](question.SerializeToString())
        return as_json(rest.as_json(message)["models"])

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
        known: _Known | None = call.plan.kept
        if known is not None and known.encoder.target is not target:
            known = None
        if known is None and is_raw(call.plan, signature):  # what is known is not
            return await self._infer_raw(call, target, signature)
        if known is None and is_form(call.plan, signature):
            return await self._infer_form(call, target, signature)
        if known is not None and (rows := await known.rows(call)) is not None:
            response = await call.run(rows, known.encoder, call.deadline_s)
            return await _reply(call, response, known.form)
        received_s, body = time.monotonic(), call.body
        _check_json(body, signature)
        json_bytes = self._json_bytes(call.plan)
        if json_bytes is None and not signature.row_bytes and len(body) <= _INLINE_BYTES:
            plain = plain_json.read(body, signature, self._router.batching.max_request_rows)
            if plain is not None:
                return await self._infer_plain(call, target, signature, plain)
        size = len(body) if json_bytes is None else json_bytes
        may_learn = known is None and (json_bytes is not None or signature.row_bytes > 0)
        taken, returned = _of_bytes(signature)
        work = body, json_bytes, name, version, may_learn and size <= _KNOWN_BYTES, taken
        packed, form, values = await call.work(
            read_packed, *work, size=size, few_bytes=_INLINE_BYTES
        )
        message = inference_pb.ModelInferRequest.FromString(packed)
        form = form._replace(base64=returned)
        inference = infer.decode(self._router, target, message, signature)
        if options := _options(call.plan):
            inference = inference._replace(parameters={**options, **inference.parameters})
        facts = inference, name, signature
        found = infer.raw_ending(message, inference, signature, _nothing_before)
        if found and values and values.num_bytes == len(found[0]):
            encoder = infer.InferEncoder(target, None, *facts, _as_it_is)
            encoder.write_long = partial(_long_answer, *facts)
            if all(form.wants_bytes(signature.outputs[each].name) for each in inference.outputs):
                write = partial(_write_rest, form, call.plan.headers)
                encoder = infer.RawEncoder(target, None, *facts, write)
                encoder.before = _nothing_before
                long = partial(_long_answer, *facts)
                encoder.write_long = partial(_write_long_rest, form, call.plan.headers, long)
            encoder.layout = found[1]
            call.plan.kept = _Known(values, encoder, form)
            if isinstance(encoder, infer.RawEncoder) and not values.datatype:
                call.expect_repeats(values.before, encoder)
        left_s = math.inf if inference.timeout_s is None else inference.timeout_s
        deadline_s = min(call.deadline_s, received_s + left_s)
        encoder = infer.InferEncoder(target, None, *facts, _as_it_is)
        encoder.write_long = partial(_long_answer, *facts)
        return await _reply(call, await call.run(inference.message, encoder, deadline_s), form)

    async def _infer_form(
        self, call: Exchange, target: "Route | AnyBatcher", signature: TensorSignature
    ) -> Answer:
        """Answer a form of files, each as if it had come alone, in their order."""
        # Late: a server that gets no forms needs none of it.
        from serving.http_api.handler_path import MAX_FORM_S, find_files

        items, end_s = [], min(call.deadline_s, time.monotonic() + MAX_FORM_S)
        files = await call.work(find_files, call.body, call.plan.get("content-type"))
        for name, start, end in files:
            value = np.empty(1, object)
            value[0] = call.body[start:end]
            request = PlainRequest((value,), 1, "", NO_PARAMETERS)
            try:
                answer = await self._infer_plain(call, target, signature, request, end_s)
                item = bytes(answer.body)
            except (InvalidRequest, ModelError) as err:  # of this file
                item = json.dumps({"error": str(err)}).encode()
            items.append(b'{"name":%b,%b' % (json.dumps(name).encode(), item[1:]))
        return Answer(b'{"files":[%b]}' % b",".join(items))

    async def _infer_raw(
        self, call: Exchange, target: "Route | AnyBatcher", signature: TensorSignature
    ) -> Answer:
        """Answer a request whose body is the only input's value: a text or a file."""
        (tensor,) = signature.inputs
        value = np.empty(1, object)
        value[0] = call.body
        if not tensor.is_binary:
            try:
                value[0] = call.body.decode()
            except UnicodeDecodeError as err:
                raise InvalidRequest(f"expected a text in UTF-8: {err.reason}") from err
        return await self._infer_plain(
            call, target, signature, PlainRequest((value,), 1, "", NO_PARAMETERS)
        )

    async def _infer_plain(
        self,
        call: Exchange,
        target: "Route | AnyBatcher",
        signature: TensorSignature,
        request: PlainRequest,
        end_s: float = math.inf,
    ) -> Answer:
        """Answer a request whose arrays are known, as JSON."""
        arrays, num_rows, identifier, parameters = request
        encoder = ArraysEncoder(target, num_rows, {**_options(call.plan), **parameters})
        outputs, version = await call.run(arrays, encoder, min(call.deadline_s, end_s))
        facts = call.plan.params["name"], version, identifier, signature.outputs, outputs
        if any(each.dtype == object for each in outputs) and is_long(outputs):
            name, _, identifier, tensors, _ = facts
            long = LongAnswer(name, version, identifier, tensors, outputs)
            return await _reply_long(call, long, Form(False, {}, _of_bytes(signature)[1]))
        size = sum(each.nbytes for each in outputs)
        return Answer(
            await call.work(plain_json.write, *facts, size=size, few_bytes=_INLINE_OUTPUT_BYTES)
        )


def _of_bytes(signature: TensorSignature) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the inputs and of the outputs that are bytes."""
    inputs, outputs = (
        frozenset(each.name for each in side if each.is_binary)
        for side in (signature.inputs, signature.outputs)
    )
    return inputs, outputs


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


def _options(plan: RoutedRequest) -> dict[str, str]:
    """Return the options of the query, which a handler may take."""
    return {name: values[-1] for name, values in plan.query.items()}


class _Known(NamedTuple):
    """Requests with one head that differ in the values of their inputs only."""

    values: Values
    encoder: infer.InferEncoder
    form: Form

    async def rows(self, call: Exchange) -> bytes | None:
        """Read the rows of another one; None if it may differ in more."""
        values, body = self.values, call.body
        if not values.datatype:
            return values.behind(body)
        if len(body) > _KNOWN_BYTES:
            return None
        read: list[tuple[bytes, list[int]]] = []
        for text in values.parts(body, _TURN_BYTES):
            if read:
                await call.others()
            found = rest.read_values(text, values.datatype)
            if found is None or (read and found[1] != read[0][1]):
                return None
            read.append(found)
        rows = b"".join(raw for raw, _ in read)
        return rows if len(rows) == values.num_bytes else None


async def _reply(call: Exchange, response: Any, form: Form) -> Answer:
    """Write the answer, in a process if it is long."""
    if isinstance(response, LongAnswer):
        return await _reply_long(call, response, form)
    if isinstance(response, bytes | Pieces):
        return Answer(response, kind="")
    named = zip(response.outputs, response.raw_output_contents, strict=True)
    size = sum(len(raw) for tensor, raw in named if not form.wants_bytes(tensor.name))
    if size <= _INLINE_OUTPUT_BYTES:
        return _answer(*rest.write_infer(response, form))
    return _answer(*await call.work(write_packed, response.SerializeToString(), form))


async def _reply_long(call: Exchange, answer: LongAnswer, form: Form) -> Answer:
    """Write a long answer: its JSON part by part, with other calls between."""
    outline, behind = long_json.outline(answer, form)
    names = iter(each.name for each in answer.tensors if not form.wants_bytes(each.name))
    text: list[Buffer] = []
    for each in outline:
        if isinstance(each, bytes):
            text.append(each)
            continue
        name = next(names)
        if each.dtype != object:
            write, size = long_json.json_numbers, each.nbytes
            text.append(await call.work(write, each, size=size, few_bytes=_INLINE_OUTPUT_BYTES))
            continue
        for part in long_json.json_texts(each, is_base64=name in form.base64):
            text.append(part)
            await call.others()
    return _answer_long(text, behind)


def _answer_long(text: Sequence[Buffer], behind: Sequence[Buffer | Written]) -> Answer:
    return _answer(Pieces([*text, *behind]), sum(map(len, text)) if behind else None)


def _long_answer(
    inference: InferRows,
    name: str,
    signature: TensorSignature,
    outputs: Sequence[Array],
    version: str,
) -> LongAnswer:
    tensors = [signature.outputs[at] for at in inference.outputs]
    arrays = [outputs[at] for at in inference.outputs]
    return LongAnswer(name, version, inference.id, tensors, arrays)


def _write_long_rest(
    form: Form, more: Headers, long: Any, outputs: Sequence[Array], version: str
) -> bytes | Pieces:
    """Write a long answer, all of whose outputs are bytes, as `encode_rest` does."""
    text, behind = long_json.outline(long(outputs, version), form)
    return encode_rest(_answer_long(text, behind), more)  # type: ignore[arg-type]


def _predicted(plan: RoutedRequest) -> str:
    """Return the model's name of a path that ends with NAME:predict."""
    name, _, verb = plan.params["name"].rpartition(":")
    if verb != "predict":
        raise Unsupported(f"expected /v1/models/NAME:predict, got {plan.params['name'][:80]!r}")
    return name


def _unsupported() -> Iterator[tuple[str, str, str]]:
    """Yield method and path of the extensions that there are not, and why."""
    memory, trace, log = UNSUPPORTED
    yield "GET", "/v2/{kind}sharedmemory/status", memory
    yield "GET", "/v2/{kind}sharedmemory/region/{name}/status", memory
    yield "POST", "/v2/{kind}sharedmemory/unregister", memory
    yield "POST", "/v2/{kind}sharedmemory/region/{name}/{verb}", memory
    for method in ("GET", "POST"):
        yield method, "/v2/trace/setting", trace
        yield method, "/v2/models/{name}/trace/setting", trace
        yield method, "/v2/logging", log


def _refusing(text: str) -> Any:
    async def handler(call: Exchange) -> Answer:
        raise Unsupported(text)

    return handler


def read_packed(
    body: bytes,
    json_bytes: int | None,
    name: str,
    version: str,
    learn: bool,
    base64: frozenset[str],
) -> tuple[bytes, Form, Values | None]:
    """Decode a request, as `rest.read_infer` does, in another process perhaps.

    Returns:
        The message, the form of its answer and, if they are to be learned, where its values stand.

    Raises:
        InvalidRequest: also for more beside the tensors than the loop may read, as with gRPC.
    """
    message, form = rest.read_infer(body, json_bytes, name, version, base64)
    packed = message.SerializeToString()
    check_others(packed)
    values = find_values(body, json_bytes, message) if learn else None
    return packed, form, values


def write_packed(response: bytes, form: Form) -> tuple[bytes, int | None]:
    """Encode a response likewise."""
    return rest.write_infer(inference_pb.ModelInferResponse.FromString(response), form)


def _as_it_is(response: Any) -> Any:
    return response


def _answer(content: bytes | Pieces, json_bytes: int | None) -> Answer:
    if json_bytes is None:
        return Answer(content)
    return Answer(content, "application/octet-stream", headers=[(LENGTH_HEADER, str(json_bytes))])


def _write_rest(form: Form, more: Headers, response: Any) -> bytes | Pieces:
    return encode_rest(_answer(*rest.write_infer(response, form)), more)


def _nothing_before(num_bytes: int) -> bytes:
    """Return the bytes before a tensor: over HTTP their lengths are in the JSON."""
    return b""

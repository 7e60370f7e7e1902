"""ModelStreamInfer: ModelInfer's messages on a stream, where an error is an answer too."""

import time
from functools import partial

from serving.errors import DigitsError, Unavailable
from serving.rpc import tensors
from serving.rpc.calls import AsyncCall, Caller, Calls, Context
from serving.rpc.infer import ModelInfer
from serving.rpc.inference_pb import ModelInferRequest, ModelStreamInferResponse, parse
from serving.rpc.streams import Begun, answer_stream
from serving.rpc.tensors import Inference


class ModelStreamInfer:
    """Answers streams of ModelInferRequests."""

    def __init__(self, method: ModelInfer, calls: Calls) -> None:
        """Answer each request as `method` does, through `calls`."""
        self._method = method
        self._calls = calls

    async def __call__(self, _: object, context: Context) -> None:
        """Answer ModelInferRequests in their order.

        A bad one is answered with an error_message, and the stream goes on. A full queue only
        slows it down.

        Raises:
            Unavailable: the server drains; what was accepted before is answered.
        """
        caller = Caller.of(context)

        def begin(data: bytes) -> Begun:
            item = self._begin(data, caller)
            return item.call, partial(self._response, item)

        await answer_stream(self._calls, context, begin)

    def _begin(self, data: bytes, caller: Caller) -> "_Item":
        item = _Item()
        try:
            request = parse(ModelInferRequest, data)
            item.id = request.id[: tensors.MAX_ID_CHARACTERS]
            inference = item.inference = self._method.decode(request)
            inference.received_s = item.received_s
            item.call = AsyncCall(self._calls, inference, caller)
        except DigitsError as err:
            item.error = err
        return item

    def _response(self, item: "_Item") -> bytes:
        try:
            if item.call is None or item.inference is None:
                raise item.error
            answer = item.call.result()
            fields = {"infer_response": self._method.encode(item.inference, item.call, answer)}
        except DigitsError as err:
            self._method.count_failure(err, item.received_s)
            if isinstance(err, Unavailable):
                raise
            # With the id, so that the caller knows which of its requests this was.
            fields = {"error_message": str(err), "infer_response": {"id": item.id}}
        data: bytes = ModelStreamInferResponse(**fields).SerializeToString()
        return data


class _Item:
    """One message of a stream: accepted, or refused already."""

    __slots__ = ("call", "error", "id", "inference", "received_s")

    def __init__(self) -> None:
        self.received_s = time.monotonic()
        self.id = ""
        self.inference: Inference | None = None
        self.call: AsyncCall | None = None
        self.error: DigitsError

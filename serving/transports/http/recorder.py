"""Access lines and spans of requests over HTTP."""

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.logs import request_fields
from serving.transports.access_log import REQUEST_ID, AccessLog, LoggedCall
from serving.transports.http.app import name_of


class Recorder:
    """Wraps the application: gives each request an id, which comes back, and records its end."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        """Record the requests to `app` in `log`."""
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the ASGI specification."""
        if scope["type"] != "http":
            return
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, port = scope["client"] or ("", 0)
        call = LoggedCall(f"{scope['method']} {scope['path']}", f"{host}:{port}", sent)
        request_fields.set(call.ids)
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (REQUEST_ID.encode(), call.ids["request_id"].encode())
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._log.end(call, name_of(status), status)

"""Every error that serving raises on purpose.

    ServingError
    ├── RequestError            the caller can fix it: change the request
    │   ├── InvalidRequest      wrong shape, type, byte count, number of rows, or values
    │   │   └── TooLarge        more bytes, rows or pixels than are taken: divide it
    │   ├── Unsupported         it asks for a feature that there is not
    │   ├── NotAllowed          the operator has not allowed it
    │   ├── ModelNotFound       no such model or version
    │   └── Unauthenticated     no token or a wrong one
    └── ServerError             the request was fine: retry, or call the operator
        ├── Overloaded          the queue is full; retry after a pause
        ├── Unavailable         starting, draining, or out of reach
        ├── DeadlineExceeded    the deadline passed before the answer was ready
        ├── ModelError          the model failed on this request
        ├── CorruptModel        a version's files are damaged, or contradict the manifest
        ├── DeviceError         the requested device cannot be used
        └── ConfigurationError  an option or a file that it names cannot be used

Errors know nothing of gRPC and HTTP: `serving/protocols/status.py` has one table of both.
"""


class ServingError(Exception):
    """Root of the tree; its text is one line that can be shown to a person."""

    usual_text = ""
    """Its usual text."""
    model: tuple[str, str] | None = None
    """The name and the version of the model that it is about, once they are known."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text or self.usual_text)


class RequestError(ServingError):
    """The request can't be answered as it is; sending it again does not help."""


class InvalidRequest(RequestError):
    """The inputs are invalid; the text has the expected and the received value."""


class TooLarge(InvalidRequest):
    """The request has more bytes or rows than are taken, or a picture more pixels: divide it.

    Also of an answer that has more bytes than are sent.
    """

    is_answer = False
    """Whether it is the answer that is too large: over HTTP, a fault of the server's."""


class Unsupported(RequestError):
    """The request asks for a feature that the server does not have; the text names it."""


class NotAllowed(RequestError):
    """The server was started without the option that allows this; the text names it."""


class ModelNotFound(RequestError):
    """There is no such model, or no such version of it."""


class Unauthenticated(RequestError):
    """The token is missing or wrong."""

    usual_text = "a valid bearer token is needed"


class ServerError(ServingError):
    """The request was valid but was not answered."""

    def __init__(self, text: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        """The pause that the server asks for, in seconds; None if it names none."""


class Overloaded(ServerError):
    """The queue is full; the request was not started."""

    usual_text = "the queue is full"


class Unavailable(ServerError):
    """The server or model is starting, draining, closed, or out of reach."""


class DeadlineExceeded(ServerError):
    """The deadline passed before the answer was ready."""

    usual_text = "the deadline passed while the request waited"


class ModelError(ServerError):
    """The model failed on this request, or the server failed in a way that it did not expect."""

    usual_text = "the model failed on this request"


class CorruptModel(ServerError):
    """A model version's files are damaged, incomplete, or differ from its manifest."""


class DeviceError(ServerError):
    """The requested device can't be used on this machine."""


class ConfigurationError(ServerError):
    """An option, or a file that an option names, can't be used."""

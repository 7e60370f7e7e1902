"""Every error that serving raises on purpose.

    DigitsError
    ├── RequestError            the caller can fix it: change the request
    │   ├── InvalidRequest      wrong shape, dtype, byte count, or number of images
    │   ├── ModelNotFound       no such model or version
    │   └── Unauthenticated     no token or a wrong one
    └── ServingError            the request was fine: retry, or tell the operator
        ├── Overloaded          the queue is full; retry after a pause
        ├── Unavailable         starting, draining, or out of reach
        ├── DeadlineExceeded    the deadline passed before the answer was ready
        ├── ModelError          the model failed on these images
        ├── CorruptModel        a version's files are damaged, or not what the manifest says
        ├── DeviceError         the device asked for cannot be used
        └── ConfigurationError  an option or a file given to the server cannot be used

Errors know nothing of gRPC: each edge owns one table from these classes to its own codes.
"""


class DigitsError(Exception):
    """Root of the tree; its text is one line, fit to show to a person."""


class RequestError(DigitsError):
    """The request cannot be answered as it is; sending it again changes nothing."""


class InvalidRequest(RequestError):
    """The images are not what is expected; the text names what was expected and what came."""


class ModelNotFound(RequestError):
    """There is no such model, or no such version of it."""


class Unauthenticated(RequestError):
    """The token is missing or wrong."""


class ServingError(DigitsError):
    """The request was fine, yet it was not answered."""


class Overloaded(ServingError):
    """The queue is full; the request was not started."""


class Unavailable(ServingError):
    """Nobody is serving: starting, draining, closed, or out of reach."""


class DeadlineExceeded(ServingError):
    """The deadline passed first."""


class ModelError(ServingError):
    """The model failed while running these images."""


class CorruptModel(ServingError):
    """A model version's files are damaged, incomplete, or differ from its manifest."""


class DeviceError(ServingError):
    """The device asked for cannot be used on this machine."""


class ConfigurationError(ServingError):
    """An option, or a file named by one, cannot be used."""

"""A server with an HTTP port and the bundled model."""

from tests.serving.http.conftest import classifier, http, models

__all__ = ["classifier", "http", "models"]

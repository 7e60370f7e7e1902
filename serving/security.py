"""Tokens, certificates and TLS, and the files of them, which are read again when they change."""

import logging
from typing import TypeVar

_log = logging.getLogger(__name__)
Content = TypeVar("Content")

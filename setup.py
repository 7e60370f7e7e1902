"""Refuses an older Python at once; pyproject.toml has all else.

With an extra, as in `pip install '.[serve]'`, the pip of Python 3.10 looks at `requires-python`
after it has tried all versions of all requirements.
"""

import platform
import sys

from setuptools import setup

if sys.version_info < (3, 11):  # noqa: UP036 - for the very versions that are too old
    sys.exit(f"digit-serving needs Python 3.11 or newer, this is {platform.python_version()}")
setup()

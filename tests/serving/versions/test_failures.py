"""Why models can't be served: what may pass is tried again, and ends a start with exit code 1."""

import errno

import pytest

from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
)
from serving.versions.failures import at_start, may_pass, others_than, text_of

LASTING = ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EACCES", "EPERM", "ENAMETOOLONG", "EINVAL",
           "ENXIO", "ENODEV", "EFBIG")  # fmt: skip


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (None, False),
        (MemoryError(), True),
        (Unavailable("x"), True),
        (OSError(errno.EIO, "x"), True),
        (OSError(errno.EMFILE, "x"), True),
        *((OSError(getattr(errno, name), "x"), False) for name in LASTING),
        (FileNotFoundError("x"), False),
        (PermissionError("x"), False),
        (ConfigurationError("x"), False),
        (CorruptModel("out of memory, it says"), False),
        (DeviceError("CUDA failure 2: Out of memory"), True),
        (DeviceError("all CUDA-capable devices are busy"), True),
        (DeviceError("no such device"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("Failed to allocate 5 bytes"), True),
        (RuntimeError("std: bad allocation"), True),
        (RuntimeError("the device is in use"), True),
        (RuntimeError("a bug"), False),
        (caused(CorruptModel("x"), OSError(errno.EIO, "x")), True),
        (caused(CorruptModel("x"), caused(KeyError("x"), MemoryError())), True),
        (caused(CorruptModel("x"), FileNotFoundError("x")), False),
    ],
    ids=repr,
)
def test_reasons_that_may_pass(error, may):
    assert may_pass(error) is may


def test_texts_name_the_type_of_others():
    assert text_of(CorruptModel("x")) == "x"
    assert text_of(KeyError("x")) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ((), CorruptModel),
        ((None,), CorruptModel),
        ((Unavailable("a"),), Unavailable),
        ((None, Unavailable("a"), MemoryError()), Unavailable),
        ((Unavailable("a"), CorruptModel("b")), CorruptModel),
        ((ConfigurationError("a"),), ConfigurationError),
        ((None, DeviceError("a")), DeviceError),
        ((ModelNotFound("a"),), ModelNotFound),
        ((ModelNotFound("a"), ModelNotFound("b")), CorruptModel),
        ((InvalidRequest("a"),), CorruptModel),
    ],
    ids=repr,
)
def test_start_ends_by_the_reasons_of_its_models(errors, kind):
    error = at_start("no model", *errors)
    assert (type(error), str(error)) == (kind, "no model")


def test_names_that_were_meant():
    assert others_than("digist", ["digits", "iris"]) == (
        ", and none is named digist: did you mean digits?")  # fmt: skip
    many = [f"m{number}{number}" for number in range(10)]
    assert others_than("x", many) == f", and none is named x, only {', '.join(many[:8])}"
    assert others_than("x", []) == ""

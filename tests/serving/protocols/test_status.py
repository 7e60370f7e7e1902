import ast
import pickle
import re
from pathlib import Path

import grpc
import pytest

from serving import errors
from serving.errors import DigitsError, RequestError, ServingError
from serving.protocols.status import MODEL_TEXTS, STATUS, Status, StatusCode, error_from


def leaves(root):
    children = root.__subclasses__()
    return set().union(*map(leaves, children)) if children else {root}


def test_codes_are_those_of_grpc():
    expected = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: code.value for code in StatusCode} == expected


def test_every_error_has_a_status():
    assert set(STATUS) == leaves(DigitsError) | {errors.InvalidRequest}  # TooLarge is one


def test_every_error_is_the_callers_or_the_servers():
    assert leaves(RequestError) | leaves(ServingError) == leaves(DigitsError)


def drawn_bases():
    """Each error of the tree in the docstring, and its parent there."""
    bases: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^ {4}([│├└─ ]*)(\w+)", errors.__doc__ or "", re.MULTILINE):
        del path[len(indent) // 4 :]
        bases[name] = path[-1] if path else "Exception"
        path.append(name)
    return bases


def test_the_drawn_tree_is_the_real_one():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert drawn_bases() == {each.__name__: (each.__base__ or each).__name__ for each in classes}


def test_callers_get_the_statuses_of_the_contract():
    expected = {
        errors.InvalidRequest: "INVALID_ARGUMENT",
        errors.ModelNotFound: "NOT_FOUND",
        errors.Unauthenticated: "UNAUTHENTICATED",
        errors.Overloaded: "RESOURCE_EXHAUSTED",
        errors.Unavailable: "UNAVAILABLE",
        errors.DeadlineExceeded: "DEADLINE_EXCEEDED",
        errors.ModelError: "INTERNAL",
    }
    assert {error: STATUS[error].name for error in expected} == expected


def test_statuses_that_reach_callers_lead_back_to_their_error():
    for error in leaves(DigitsError) - {
        errors.TooLarge,  # over gRPC an InvalidRequest
        errors.Unsupported,  # no client of ours asks for it
        errors.CorruptModel,
        errors.DeviceError,
        errors.ConfigurationError,
    }:
        assert type(error_from(STATUS[error], MODEL_TEXTS[0], "here:1")) is error


def test_internal_without_our_own_text_is_a_broken_connection():
    error = error_from(STATUS[errors.ModelError], "Received RST_STREAM with error code 2", "here:1")
    assert type(error) is errors.Unavailable
    assert str(error) == "here:1: INTERNAL: Received RST_STREAM with error code 2"


def test_every_text_of_a_model_error_is_known_to_clients():
    texts = set()
    for path in Path(errors.__file__).parent.rglob("*.py"):
        # Their reasons are for the program that they are in, or for HTTP.
        if path.name in ("embedded.py", "preprocessing.py", "cluster.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ModelError"):
                texts |= {ast.unparse(argument) for argument in node.args} or {"usual"}
    assert texts == {"usual", "_INTERNAL"}
    assert set(MODEL_TEXTS) > {str(errors.ModelError()), "internal error"}


def test_errors_survive_a_pipe_between_processes():
    for error in (errors.Overloaded(), errors.Overloaded("full"), errors.InvalidRequest("bad")):
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied)) == (type(error), str(error))


@pytest.mark.parametrize("error", [errors.Overloaded(), errors.Unavailable("shutting down")])
def test_errors_that_pass_ask_for_another_attempt(error):
    assert Status.of(error).metadata == (("grpc-retry-pushback-ms", "100"),)
    assert Status.of(errors.ModelError()).metadata == ()

from serving import errors
from serving.errors import DigitsError, RequestError, ServingError
from serving.rpc.status import STATUS, error_from


def leaves(root: type[DigitsError]) -> set[type[DigitsError]]:
    children = root.__subclasses__()
    return set().union(*map(leaves, children)) if children else {root}


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == leaves(DigitsError)


def test_every_error_is_the_callers_or_the_servers() -> None:
    assert leaves(RequestError) | leaves(ServingError) == leaves(DigitsError)


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = errors.__doc__ or ""
    for error in leaves(DigitsError):
        assert f"─ {error.__name__} " in drawn


def test_statuses_that_reach_callers_lead_back_to_their_error() -> None:
    for error in leaves(DigitsError) - {
        errors.CorruptModel,
        errors.DeviceError,
        errors.ConfigurationError,
    }:
        assert type(error_from(STATUS[error], "text")) is error

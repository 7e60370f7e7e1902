"""`python -m handwriting` refuses what it can't do, in one line."""

import pytest

from handwriting.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--number", "0"], "expected a whole number, at least 1, got '0'"),
        (["evaluate", "--rows", "poems"], "invalid choice: 'poems'"),
        (["fit", "--pages", "3"], "expected a whole number, at least 100, got '3'"),
        (["fit", "--epochs", "x"], "expected a whole number, at least 1, got 'x'"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]

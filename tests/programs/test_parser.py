"""Options from the environment: every option has its variable, and the command line wins."""

import argparse

import pytest

import benchmarks.cli
import serving.cli.commands
import training.cli
from serving.commandline.parser import Parser, blame

PROGRAMS = [serving.cli.commands.parser, training.cli.parser, benchmarks.cli.parser]


@pytest.fixture
def parser():
    parser = Parser(prog="program")
    parser.add_argument("--port", type=int, default=1)
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--reflection", action="store_true")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("files", nargs="*")
    return parser


@pytest.fixture(autouse=True)
def given(monkeypatch):
    """Set variables, named without the prefix."""

    def given(**variables):
        for name, text in variables.items():
            monkeypatch.setenv(f"SERVING_{name}", text)

    return given


def test_variable_sets_an_option_even_a_required_one(parser, given):
    given(PORT="8033", LOG_FORMAT="json", REFLECTION="yes", RATE="2.5")
    options = parser.parse_args(["a", "b"])
    assert (options.port, options.log_format, options.reflection) == (8033, "json", True)
    assert (options.rate, options.files) == (2.5, ["a", "b"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--por", "1"], "unknown option --por: did you mean --port?"),
        (["--prot=1"], "unknown option --prot: did you mean --port?"),
        (["--nothing"], "unknown option --nothing;"),
    ],
)
def test_option_is_spelled_in_full(parser, words, reason, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--rate", "1", *words])
    assert reason in capsys.readouterr().err


def test_command_names_the_option_that_was_meant(capsys):
    with pytest.raises(SystemExit):
        serving.cli.commands.parser({}).parse_args(["serve", "--max-batch", "3"])
    wanted = "digit-serving serve: unknown option --max-batch: did you mean --max-batch-size?"
    assert wanted in capsys.readouterr().err


def test_command_line_wins(parser, given):
    given(PORT="8033", REFLECTION="1", RATE="2.5")
    options = parser.parse_args(["--port", "7", "--no-reflection"])
    assert (options.port, options.reflection) == (7, False)
    assert set(options.variables) == {"SERVING_RATE"}


@pytest.mark.parametrize(
    ("text", "is_set"), [("1", True), ("TRUE", True), ("0", False), ("no", False), ("", False)]
)
def test_flag_takes_words(parser, given, text, is_set):
    given(REFLECTION=text)
    assert parser.parse_args(["--rate", "1"]).reflection is is_set


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("PORT", "eighty", "argument --port: invalid int value: 'eighty'"),
        ("RATE", "fast", "argument --rate: invalid float value: 'fast'"),
        ("LOG_FORMAT", "xml", "argument --log-format: invalid choice: 'xml'"),
        ("REFLECTION", "2", "argument --reflection: expected one of 1, true, yes, 0, false, no, "),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(parser, given, capsys, name, text, reason):
    given(**{name: text})
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([] if name == "RATE" else ["--rate", "1"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"program: {reason}")
    assert line.endswith(f" (set by SERVING_{name}); see --help\n")
    assert line.count("\n") == 1


def test_service_links_of_kubernetes_are_not_taken_for_ports(parser, given):
    given(PORT="tcp://10.96.0.17:50051", RATE="1")
    assert parser.parse_args([]).port == 1


def test_bad_variable_does_not_hide_the_help(parser, given, capsys):
    given(PORT="eighty")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"])
    assert ended.value.code == 0
    assert "SERVING_PORT" in capsys.readouterr().out


def test_message_names_the_variable_that_it_is_about():
    variables = {
        "SERVING_PORT": "70000",
        "SERVING_TLS_CERT": "/certs/a.pem",
        "SERVING_WORKERS": "2",
    }
    expected = "port must be 0 to 65535, got 70000"
    assert blame(expected, variables) == f"{expected} (set by SERVING_PORT)"
    expected = "/certs/a.pem: No such file"
    assert blame(expected, variables) == f"{expected} (set by SERVING_TLS_CERT)"
    assert blame("no model in models", variables) == "no model in models"


def commands_of(parser):
    [commands] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_of_every_program_has_a_variable(program, monkeypatch, capsys):
    for required in ("RATE", "OUTPUT", "SAMPLES"):
        monkeypatch.setenv(f"SERVING_{required}", "1")
    for name, command in commands_of(program()).items():
        shown = [a for a in command._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
        options = [action for action in shown if action.option_strings]
        words = [name, *["x"] * (len(shown) - len(options))]
        assert not options or "can also be set by the environment" in command.format_help()
        for action in options:
            variable = f"SERVING_{action.option_strings[0][2:].upper().replace('-', '_')}"
            with monkeypatch.context() as patch:
                patch.setenv(variable, "odd")
                try:
                    value = vars(program().parse_args(words))[action.dest]
                    assert str(value[0] if isinstance(value, list) else value) == "odd"
                except SystemExit:
                    assert f"(set by {variable})" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_is_printed(program, capsys):
    with pytest.raises(SystemExit) as ended:
        program().parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{program().prog} {serving.__version__}\n"

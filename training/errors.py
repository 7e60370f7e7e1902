"""Errors that end a command: each text is fit to show to a person.

TrainingError       something failed: exit code 1
Diverged        the loss is no longer a number
NotTrained      the output of training is missing or unreadable; names the command to run
ExportError     nothing was published, and why
UnusableInput   the command's input cannot be used: exit code 2
DataError   MNIST can't be had, or a file of it is damaged
ResumeError there is nothing to resume, or it is another training
"""

import re


class TrainingError(Exception):
    """Something failed."""

    exit_code = 1


class Diverged(TrainingError):
    """The loss is no longer a number: the network is lost."""


class NotTrained(TrainingError):
    """The output of training is missing or unreadable; the text names the command to run."""


class ExportError(TrainingError):
    """Nothing was published; the text is one line and says why."""


class UnusableInput(TrainingError):
    """The command's input can't be used."""

    exit_code = 2


class DataError(UnusableInput):
    """MNIST can't be had, or a file of it is damaged."""


class ResumeError(UnusableInput):
    """There is nothing to resume, or it is another training; the text is one line."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says why: some libraries write pages."""
    text = re.sub(
        r"\x1b\[\d*m|^(Exception encountered|in user code).*$", "", str(error), flags=re.M
    )
    return text.strip().partition("\n")[0]

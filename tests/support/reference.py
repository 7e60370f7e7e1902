"""What the reference of command lines lists of a command, and what its parser has."""

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
_LINE = re.compile(r'### (.+)|\| <a id="[^"]+"></a>`([^`]+)` \|')


def listed(command: str) -> list[str]:
    """Return the groups and options of a command in the reference, in its order."""
    _, _, section = PAGE.read_text("utf-8").partition(f"\n## digit-serving {command}\n")
    found = map(_LINE.match, section.partition("\n## ")[0].splitlines())
    return [each[1] or each[2] for each in found if each]


def shown(parser: argparse.ArgumentParser) -> list[str]:
    """Return the groups and options that the help of a command shows, in its order."""
    formatter, lines = parser._get_formatter(), []
    for group in parser._action_groups:
        actions = [
            each for each in group._group_actions
            if each.help not in (None, argparse.SUPPRESS) and each.dest != "help"
        ]  # fmt: skip
        if actions and group.title not in ("positional arguments", "options"):
            lines.append(str(group.title))
        words = map(formatter._format_action_invocation, actions)
        lines.extend(each.replace("|", " or ") for each in words)
    return lines

"""The frame of every HTML report: one self-contained page, for any screen.

The page never scrolls sideways: a wide table or picture scrolls in its own box.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

Table = Sequence[Sequence[str]]
"""A heading and rows, all of the same length."""

# In the dark, the pictures are inverted onto the same near-black and their hues turned back.
_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { --paper: #fff; --ink: #1f2933; --muted: #5f6b7a; --rule: #d9dee5;
          color-scheme: light dark; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #141414; --ink: #e6e8eb; --muted: #9aa5b1; --rule: #333a41; }
    img { filter: invert(0.92) hue-rotate(180deg); }
  }
  body { max-width: 56rem; margin: 0 auto; padding: 2rem 0.8rem 4rem; overflow-wrap: break-word;
         font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); }
  h1 { margin: 0; font-size: 2.4rem; line-height: 1.1; }
  h2 { margin: 2.5rem 0 0; font-size: 1.2rem; }
  p { max-width: 44rem; margin: 0.3rem 0 0.8rem; color: var(--muted); }
  div { overflow-x: auto; }
  img { display: block; width: 100%; min-width: 346px; max-width: 42rem; height: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
          font-size: 0.9rem; overflow-wrap: normal; }
  th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--rule);
           min-width: 5rem; vertical-align: top; font-weight: normal; }
  th[scope=col] { color: var(--muted); }
  th:last-child, td:last-child { padding-right: 0; }
</style>
<main>
<h1>$heading</h1>
$body
</main>
</html>
""")


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and its alternative text."""

    svg: bytes
    alt: str
    """For those who can't see it: the figures, not only the kind of picture."""


def page(title: str, heading: str, lead: Sequence[str], sections: Sequence[str]) -> str:
    """Write a page."""
    body = "\n".join([*(f"<p>{escape(text)}</p>" for text in lead), *sections])
    return _PAGE.substitute(title=escape(title), heading=escape(heading), body=body)


def section(title: str, note: str, content: Table | Picture) -> str:
    """Write a table or a picture under its heading and an explanation, which may be empty."""
    inner = _picture(content) if isinstance(content, Picture) else _table(content)
    parts = (
        f"<h2>{escape(title)}</h2>",
        f"<p>{escape(note)}</p>" if note else "",
        # Focusable, so that the keyboard can scroll it.
        f'<div role="region" aria-label="{escape(title)}" tabindex="0">{inner}</div>',
    )
    return "".join(parts)


def _picture(picture: Picture) -> str:
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    return f'<img alt="{escape(picture.alt)}" src="{source}">'


def _table(table: Table) -> str:
    """Write a table; its first row has the columns' headings, each first cell its row's."""
    heading, *rows = table
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    body = (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

"""A page in one file of HTML, light and dark, readable on a telephone: its frame, and tables."""

from collections.abc import Sequence
from html import escape
from string import Template

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
  }
  body { max-width: 56rem; margin: 0 auto; padding: 2rem 0.8rem 4rem; overflow-wrap: break-word;
         font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); }
  h1 { margin: 0; font-size: 2.4rem; line-height: 1.1; }
  h2 { margin: 2.5rem 0 0; font-size: 1.2rem; }
  p { max-width: 44rem; margin: 0.3rem 0 0.8rem; color: var(--muted); }
  /* A box that can be scrolled sideways has a shadow at the side where more is. */
  div { overflow-x: auto; background:
      linear-gradient(to right, var(--paper) 30%, transparent) 0 / 3rem 100% no-repeat local,
      linear-gradient(to left, var(--paper) 30%, transparent) 100% / 3rem 100% no-repeat local,
      linear-gradient(to right, #8888, transparent) 0 / 1rem 100% no-repeat scroll,
      linear-gradient(to left, #8888, transparent) 100% / 1rem 100% no-repeat scroll; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
          font-size: 0.9rem; overflow-wrap: normal; }
  th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top;
           border-bottom: 1px solid var(--rule); font-weight: normal; }
  th[scope=col] { color: var(--muted); }
  th:last-child, td:last-child { padding-right: 0; }
$style</style>
<main>
<h1>$title</h1>
$body
</main>
</html>
""")
_CHOSEN = '<tr class="chosen">'


def page(title: str, body: str, style: str) -> str:
    """Return a page.

    Args:
        title: its heading, as text.
        body: what follows, as HTML.
        style: rules of CSS behind those of every page, whose colours are variables.
    """
    return _PAGE.substitute(title=escape(title), body=body, style=style)


def table(cells: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """Return a table; its first row has the columns' headings, each first cell its row's.

    Args:
        cells: texts.
        marked: the number of the row with the class "chosen"; None for none.
    """
    heading, *rows = cells
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    body = (
        (_CHOSEN if number == marked else "<tr>")
        + f'<th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for number, (first, *rest) in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def region(name: str, content: str) -> str:
    """Return a box around content that may be wider than the page; the keyboard can scroll it."""
    return f'<div role="region" aria-label="{escape(name)}" tabindex="0">{content}</div>'

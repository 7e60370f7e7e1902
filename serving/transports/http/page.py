"""The pages to draw on, of pictures, of the API: a few files, which load nothing from others."""

from html import escape
from pathlib import Path
from typing import Any

from serving.transports.http1.problems import Answer
from serving.transports.http1.routing import Endpoint

_FILES = Path(__file__).parent / "files"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


_PAGES = {"/v1/numbers": ("index.html", "Draw a digit"), "/classify": ("classify.html", "Classify")}
"""Pages by the end of a path that they need, the first at /; and the texts of links to them."""


def page_routes(document: dict[str, Any]) -> list[Endpoint]:
    """Return the routes of the pages and their files.

    Args:
        document: the OpenAPI document, shown at /docs; at /, too, if it has none of the paths that
            another page needs.
    """
    paths = list(document["paths"])
    able = [page for end, page in _PAGES.items() if any(path.endswith(end) for path in paths)]
    homes = {name: "/" if not i else f"/{name[:-5]}" for i, (name, _) in enumerate(able)}
    links = "".join(f"<a href='{homes[name]}'>{text}</a> · " for name, text in able)
    api_page = Answer(_api_page(document, links).encode(), _TYPES[".html"])
    routes = [answered(name, api_page) for name in ("/docs", "/")[: 2 - bool(able)]]
    cached = [("cache-control", "no-cache")]
    for path in sorted(_FILES.iterdir()):
        if path.suffix != ".html" or path.name in homes:
            answer = Answer(path.read_bytes(), _TYPES[path.suffix], 200, cached)
            routes.append(answered(homes.get(path.name, f"/{path.name}"), answer))
    return routes


def answered(path: str, answer: Answer) -> Endpoint:
    """Return a route that always has the same answer."""

    async def handler(_: Any) -> Answer:
        return answer

    return Endpoint("GET", path, handler)


def _api_page(document: dict[str, Any], links: str) -> str:
    """Write the OpenAPI document as one readable page, with links to the others."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            codes = "".join(
                f"<li><code>{code}</code> {escape(_description(document, answer))}</li>"
                for code, answer in operation["responses"].items()
            )
            parameters = "".join(
                f"<li><code>{escape(item['name'])}</code> ({item['in']}) "
                f"{escape(item['description'])}</li>"
                for item in operation.get("parameters", [])
            )
            bodies = ", ".join(operation.get("requestBody", {}).get("content", {}))
            parts.append(
                f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
                f"<p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
                + (f"<p>Body: <code>{escape(bodies)}</code></p>" if bodies else "")
                + (f"<h3>Parameters</h3><ul>{parameters}</ul>" if parameters else "")
                + f"<h3>Answers</h3><ul>{codes}</ul></section>"
            )
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}: API</title><link rel=stylesheet href=style.css>"
        f"<main class=api><h1>{escape(info['title'])}: API</h1><p>{escape(info['description'])}</p>"
        f"<p>{links}<a href='/openapi.json'>openapi.json</a></p>"
        + "".join(parts)
        + "</main></html>"
    )


def _description(document: dict[str, Any], answer: dict[str, Any]) -> str:
    if reference := answer.get("$ref"):
        answer = document["components"]["responses"][reference.rpartition("/")[2]]
    description: str = answer["description"]
    return description

"""The pages of applications and of the API: a few files, which load nothing from others."""

from html import escape
from pathlib import Path
from typing import Any

from serving.transports.http.applications import HttpApplication
from serving.transports.http1.routing import Answer, Endpoint

_FILES = Path(__file__).parent / "files"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Pages:
    """Files by their names; those of an application replace files of the same names before."""

    def __init__(self) -> None:
        self._files = {path.name: path for path in _FILES.iterdir()}
        self._texts: dict[str, tuple[str, str]] = {}

    def add(self, application: HttpApplication) -> None:
        """Add an application's pages and files."""
        self._files |= {path.name: path for path in application.FILES.iterdir()}
        self._texts |= {file: (path, text) for path, (file, text) in application.PAGES.items()}

    def routes(self, document: dict[str, Any]) -> list[Endpoint]:
        """Return the routes of the pages whose paths are in the OpenAPI document.

        The first one is at /; if there is none, the document is, which is also at /docs.
        """
        able = [
            (file, text)
            for file, (needed, text) in self._texts.items()
            if any(path.endswith(needed) for path in document["paths"])
        ]
        homes = {file: "/" if not at else f"/{file[:-5]}" for at, (file, _) in enumerate(able)}
        links = "".join(f"<a href='{homes[file]}'>{text}</a> · " for file, text in able)
        api_page = Answer(_api_page(document, links).encode(), _TYPES[".html"])
        routes = [answered(name, api_page) for name in ("/docs", "/")[: 2 - bool(able)]]
        cached = [("cache-control", "no-cache")]
        for name, path in sorted(self._files.items()):
            if path.suffix in _TYPES and (path.suffix != ".html" or name in homes):
                answer = Answer(path.read_bytes(), _TYPES[path.suffix], 200, cached)
                routes.append(answered(homes.get(name, f"/{name}"), answer))
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

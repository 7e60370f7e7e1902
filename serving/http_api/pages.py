"""The pages of applications and of the API: a few files, which load nothing from others."""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from serving.http_api.http_application import HttpApplication
from serving.transports.http_routing import Answer, Endpoint

_FILES = Path(__file__).parent / "files"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


_MODELS = "models.html"
_LINKS = b"<!-- links -->"
"""In a page's footer: links to the other pages stand there."""
_CODE = re.compile(r"`([^`]+)`")


class Pages:
    """Files by their names; those of an application replace files of the same names before."""

    def __init__(self) -> None:
        self._files = {path.name: path for path in _FILES.iterdir()}
        self._texts = {_MODELS: ("/v2/models", "Models")}

    def add(self, application: HttpApplication) -> None:
        """Add an application's pages and files."""
        if application.FILES.is_dir():  # one without pages needs none
            self._files |= {path.name: path for path in application.FILES.iterdir()}
        self._texts |= {file: (path, text) for path, (file, text) in application.PAGES.items()}

    def routes(self, document: dict[str, Any]) -> list[Endpoint]:
        """Return the routes of the pages whose paths are in the OpenAPI document.

        At / is the page of all models, or an application's if there is one model only.
        """
        able = {
            file: text
            for file, (needed, text) in self._texts.items()
            if any(path.endswith(needed) for path in document["paths"])
        }
        is_one = sum(path.endswith("/infer") for path in document["paths"]) == 1
        home = [*able][-1] if is_one else _MODELS
        links = "".join(f"<a href='{file[:-5]}'>{text}</a> · " for file, text in able.items())
        api_page = Answer(_api_page(document, links).encode(), _TYPES[".html"])
        routes = [answered("/docs", api_page)]
        cached = [("cache-control", "no-cache")]
        for name, path in sorted(self._files.items()):
            if path.suffix in _TYPES and (path.suffix != ".html" or name in able):
                content = path.read_bytes().replace(_LINKS, links.encode())
                answer = Answer(content, _TYPES[path.suffix], 200, cached)
                places = [f"/{name.removesuffix('.html')}", *["/"] * (name == home)]
                routes += [answered(place, answer) for place in places]
        return routes


def answered(path: str, answer: Answer) -> Endpoint:
    """Return a route that always has the same answer."""

    async def handler(_: Any) -> Answer:
        return answer

    return Endpoint("GET", path, handler)


def _api_page(document: dict[str, Any], links: str) -> str:
    """Write the OpenAPI document as one readable page, with links to the others."""
    parts = [
        _operation(document, method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    parts += [
        f"<section id='{escape(name)}'><h2><code>{escape(name)}</code></h2>{_shown(each)}</section>"
        for name, each in document["components"]["schemas"].items()
    ]
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}: API</title><link rel=stylesheet href=style.css>"
        f"<main class=api><h1>{escape(info['title'])}: API</h1><p>{_prose(info['description'])}</p>"
        "<p>The page <a href='/models'>Models</a> sends requests from forms.</p>"
        f"<p>{links}<a href='/openapi.json'>openapi.json</a></p>"
        + "".join(parts)
        + "</main></html>"
    )


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    codes = "".join(
        f"<li><code>{code}</code> {_answer(document, answer)}</li>"
        for code, answer in operation["responses"].items()
    )
    parameters = "".join(
        f"<li><code>{escape(item['name'])}</code> ({item['in']}) {_prose(item['description'])}</li>"
        for item in operation.get("parameters", [])
    )
    contents = operation.get("requestBody", {}).get("content", {})
    bodies = ", ".join(
        f"<code>{escape(kind)}</code> {_schema_link(each)}" for kind, each in contents.items()
    )
    examples = "".join(_shown(each["example"]) for each in contents.values() if "example" in each)
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}</p>"
        + (f"<p>Body: {bodies}</p>{examples}" if bodies else "")
        + (f"<h3>Parameters</h3><ul>{parameters}</ul>" if parameters else "")
        + f"<h3>Answers</h3><ul>{codes}</ul></section>"
    )


def _answer(document: dict[str, Any], answer: dict[str, Any]) -> str:
    if reference := answer.get("$ref"):
        answer = document["components"]["responses"][reference.rpartition("/")[2]]
    schemas = " ".join(map(_schema_link, answer["content"].values()))
    return f"{_prose(answer['description'])} {schemas}"


def _schema_link(content: dict[str, Any]) -> str:
    name = escape(content["schema"].get("$ref", "").rpartition("/")[2])
    return f"<a href='#{name}'>{name}</a>" if name else ""


def _prose(text: str) -> str:
    """Write a description, which has Markdown's back-ticks around code, as HTML."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _shown(document: object) -> str:
    return f"<pre>{escape(json.dumps(document, indent=2))}</pre>"

"""The pages of applications and of the models: a few files, which load nothing from others."""

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
        # FastAPI has this path for what the page of models shows here.
        routes = [answered("/docs", Answer(b"", _TYPES[".html"], 308, [("location", "/models")]))]
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

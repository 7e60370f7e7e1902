"""The models of a server as its page shows them, with a filled-in request for each."""

from collections.abc import Iterator
from typing import Any

from serving.config import ServerConfig
from serving.model.loaded import LoadedModel
from serving.model.picture_inputs import PictureInputs
from serving.oip.examples import Access, Example, sample_of, shape_of
from serving.oip.queries import Queries
from serving.router import Route, Router
from serving.tensors import Tensor
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, as_json


class ModelsPage:
    """Answers /v2/models."""

    def __init__(self, router: Router, queries: Queries, config: ServerConfig) -> None:
        """Describe the models of `router`."""
        self._router, self._queries = router, queries
        self._config = config
        self._inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
        self.grpc_address = ""
        """Where gRPC answers, once that is known."""

    def routes(self) -> list[Endpoint]:
        """Return the route."""
        return [Endpoint("GET", "/v2/models", self._answer)]

    async def _answer(self, call: Exchange) -> Answer:
        security, host = self._config.security, call.plan.host
        scheme = "https" if security.has_tls else "http"
        access = Access(
            _reached(self.grpc_address, host),
            host and f"{scheme}://{host}",
            "ca.pem" if security.has_tls else "",
            needs_certificate=security.tls_client_ca is not None,
            has_tokens=security.has_tokens,
        )
        return as_json({"models": list(self._described(access))})

    def _described(self, access: Access) -> Iterator[dict[str, Any]]:
        for item in self._queries.index():
            facts = item | {"roles": []}
            route = self._router.routes.get(item["name"])
            model = route and route.versions.versions.get(item["version"])
            yield facts | self._facts(route, model, access) if route and model else facts

    def _facts(self, route: Route, model: LoadedModel, access: Access) -> dict[str, Any]:
        versions, tensors = route.versions, model.tensors
        pictures = self._inputs.find(model)
        is_default = model.version == versions.default_version
        roles = [label for label, version in versions.labels.items() if version == model.version]
        if versions.canary is not None and versions.canary.version == model.version:
            roles.append(f"{versions.canary.share:.3g} of the calls")
        shapes = model.sample_shapes
        return {
            "roles": ["default"] * is_default + roles,
            "device": model.device,
            "precision": model.precision,
            "optimized": model.manifest.optimized,
            "batching": model.batching,
            "inputs": [
                _tensor(each) | {"shape": shape_of(each, shapes), "sample": sample_of(each, shapes)}
                for each in tensors.inputs
            ],
            "outputs": [_tensor(each) for each in tensors.outputs],
            "classes": (pictures and pictures.labels) or model.labels,
            "takes_pictures": pictures is not None,
            "in_parts": tensors.in_parts,
            "requests": Example(
                route.name, "" if is_default else model.version, tensors, shapes, access
            ).lines(),
        }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "axes": tensor.axes,
        "content": tensor.content,
    }


def _reached(address: str, host: str) -> str:
    """Return where a caller reaches gRPC who came to this host over HTTP."""
    place, _, port = address.rpartition(":")
    if place not in ("0.0.0.0", "[::]"):
        return address
    return f"{host if host.endswith(']') else host.rpartition(':')[0] or host}:{port}"

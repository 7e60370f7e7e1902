"""The OpenAPI document has what OpenAPI 3.1 requires, and names what is there."""

import json
from pathlib import Path

import pytest

import digit_classifier.http
from digit_classifier import Classifier
from serving.config import ServerConfig
from serving.http_api import pictures
from serving.http_api.openapi import openapi_document
from tests.support.fakes import model_in, router_of

METHODS = {"get", "post", "put"}
TYPES = {"string", "integer", "number", "boolean", "array", "object"}


@pytest.fixture(scope="module")
def router():
    with Classifier.pretrained("cpu") as classifier:
        router = router_of(*model_in(classifier))
        yield router
        router.close()


@pytest.fixture(scope="module")
def document(router):
    return openapi_document(router, {}, {})


def parts(node):
    """Each object in a document."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, str) and hasattr(node, "__iter__"):
        for each in node:
            yield from parts(each)


def followed(document, reference):
    found = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def resolved(document, part):
    return followed(document, part["$ref"]) if "$ref" in part else part


def check_schema(document, schema):
    schema = resolved(document, schema)
    if "type" in schema:
        assert schema["type"] in TYPES
    assert {*schema.get("required", ())} <= {*schema.get("properties", ())}
    if schema.get("type") == "array":
        check_schema(document, schema["items"])
    for each in schema.get("properties", {}).values():
        check_schema(document, each)
    if isinstance(schema.get("additionalProperties"), dict):
        check_schema(document, schema["additionalProperties"])


def check_contents(document, contents):
    assert contents
    for kind, content in contents.items():
        assert "/" in kind
        check_schema(document, content["schema"])


def test_document_has_what_openapi_requires(document):
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() >= {"title", "version", "description", "license"}
    assert document["info"]["license"].keys() == {"name", "identifier"}
    assert json.loads(json.dumps(document)) == document
    for part in parts(document):
        if "$ref" in part:
            assert followed(document, part["$ref"]) is not None
    for name, schema in document["components"]["schemas"].items():
        assert name[0].isupper()
        assert schema["type"] == "object"
        check_schema(document, schema)


def test_operations_are_whole(document):
    for path, methods in document["paths"].items():
        assert path.startswith("/")
        assert methods.keys() <= METHODS
        for method, found in methods.items():
            assert found["summary"], f"{method} {path}"
            codes = found["responses"]
            assert {"200", "401"} <= codes.keys()
            for code, response in codes.items():
                assert code.isdecimal()
                response = resolved(document, response)
                assert response["description"]
                check_contents(document, response["content"])
            if "requestBody" in found:
                assert method == "post"
                assert found["requestBody"]["required"] is True
                check_contents(document, found["requestBody"]["content"])
            for parameter in found.get("parameters", ()):
                parameter = resolved(document, parameter)
                assert {"name", "in", "schema"} <= parameter.keys()
                assert parameter["in"] in ("header", "query")


def test_paths_are_those_of_the_protocol(document):
    model = "/v2/models/digits"
    assert {(method, path) for path, each in document["paths"].items() for method in each} == {
        *(("get", path) for path in (
            "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", model, f"{model}/ready",
            f"{model}/config", f"{model}/stats")),
        *(("post", f"{model}/{verb}") for verb in ("infer", "generate", "generate_stream")),
    }  # fmt: skip


def test_bodies_say_what_each_verb_takes(document):
    paths = document["paths"]
    infer = paths["/v2/models/digits/infer"]["post"]
    (name,) = {each["name"] for each in infer["parameters"]}
    assert name == "request-timeout"
    body = infer["requestBody"]["content"]["application/json"]
    assert "example" not in body, "its values would be zeros"
    assert "binary tensor data" in infer["description"]
    stream = paths["/v2/models/digits/generate_stream"]["post"]
    assert [*stream["responses"]["200"]["content"]] == ["text/event-stream"]
    assert "event" in stream["description"]


def test_tokens_are_wanted_where_they_are_configured(document):
    assert document["security"] == [{}, {"token": []}]
    assert document["components"]["securitySchemes"] == {
        "token": {"type": "http", "scheme": "bearer"}}  # fmt: skip


def test_errors_are_problems(document):
    for code, response in document["components"]["responses"].items():
        assert 400 <= int(code) < 600
        schema = {"$ref": "#/components/schemas/Problem"}
        assert response["content"] == {"application/problem+json": {"schema": schema}}


def test_document_of_the_digits_is_this(router):
    """What programs are generated from: write the file again where a change of it is meant."""
    paths, schemas = {}, {}
    for describe in (pictures.describe, digit_classifier.http.describe):
        its_paths, its_schemas = describe(router, ServerConfig())
        paths |= its_paths
        schemas |= its_schemas
    found = openapi_document(router, paths, schemas)
    found["info"]["version"] = ""
    expected = json.loads((Path(__file__).parent / "openapi.json").read_text("utf-8"))
    for part in ("paths", "components"):
        for name in expected[part].keys() | found[part].keys():
            assert found[part].get(name) == expected[part].get(name), name
    assert found == expected

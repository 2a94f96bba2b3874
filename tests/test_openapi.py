"""The OpenAPI document is complete and true: every route, every error, and real answers fit their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cards import card
from live_gateway import Live, running
from service import errors, picture_errors
from service.api import native
from service.drafts import Draft
from service.errors import ApiError
from service.terms import Terms

ROOT = Path(__file__).resolve().parent.parent
ROUTES = {
    ("post", "/sdapi/v1/txt2img"),
    ("post", "/sdapi/v1/img2img"),
    ("get", "/sdapi/v1/progress"),
    ("post", "/sdapi/v1/interrupt"),
    ("post", "/sdapi/v1/skip"),
    ("get", "/sdapi/v1/options"),
    ("post", "/sdapi/v1/options"),
    ("get", "/sdapi/v1/samplers"),
    ("get", "/sdapi/v1/schedulers"),
    ("get", "/sdapi/v1/sd-models"),
    ("post", "/sdapi/v1/png-info"),
    ("get", "/sdapi/v1/memory"),
    ("get", "/sdapi/v1/cmd-flags"),
    ("get", "/sdapi/v1/scripts"),
    ("get", "/sdapi/v1/embeddings"),
    ("get", "/sdapi/v1/loras"),
    ("get", "/sdapi/v1/upscalers"),
    ("get", "/sdapi/v1/latent-upscale-modes"),
    ("get", "/sdapi/v1/{what}"),
    ("post", "/v1/images/generations"),
    ("post", "/v1/images/edits"),
    ("post", "/v1/images/variations"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("post", "/batches"),
    ("get", "/batches"),
    ("get", "/batches/{id}"),
    ("delete", "/batches/{id}"),
    ("get", "/batches/{id}/results"),
    ("get", "/batches/{id}/images.zip"),
    ("post", "/uploads"),
    ("get", "/uploads/{key}"),
    ("delete", "/uploads/{key}"),
    ("post", "/generate"),
    ("get", "/jobs"),
    ("get", "/jobs/{id}"),
    ("post", "/jobs/{id}/retry"),
    ("delete", "/jobs/{id}"),
    ("delete", "/jobs/{id}/images"),
    ("get", "/jobs/{id}/events"),
    ("get", "/webhooks/deliveries"),
    ("post", "/webhooks/deliveries/{id}/redeliver"),
    ("get", "/images/{key}"),
    ("head", "/images/{key}"),
    ("get", "/samplers"),
    ("get", "/schedules"),
    ("get", "/schedules/{id}.svg"),
    ("get", "/guidances"),
    ("get", "/models"),
    ("get", "/workers"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(valkey, tmp_path_factory.mktemp("data"), card()) as live:
        yield live


@pytest.fixture(scope="module")
def document(gateway: Live) -> Any:
    return gateway.http.get("/openapi.json").json()


def tree(root: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def check(document: Any, operation: Any, status: int, body: Any) -> None:
    """Raises where a real answer does not fit the schema that is documented for its status."""
    schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    Draft202012Validator(schema | {"components": document["components"]}).validate(body)


def test_every_route_is_documented(document: Any) -> None:
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == ROUTES
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["tags"] for operation in operations)


def test_every_error_is_documented_with_its_status_and_code(document: Any) -> None:
    documented: dict[str, set[int]] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "500" in operation["responses"]
            for status, response in operation["responses"].items():
                if int(status) < 400:
                    continue
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
                for code, example in content["examples"].items():
                    documented.setdefault(code, set()).add(int(status))
                    Draft202012Validator(content["schema"] | {"components": document["components"]}).validate(example["value"])
    nowhere = {"bad_request", "method_not_allowed", "cors_refused"}  # of no route, but of their absence, or before them
    assert documented == {e.code: {e.http_status} for e in tree() if e.code not in nowhere}


def test_the_frameworks_own_error_shape_is_not_promised(document: Any) -> None:
    assert "HTTPValidationError" not in str(document)


def test_codes_are_unique_and_the_tree_is_drawn_as_it_is() -> None:
    codes = [e.code for e in tree()]
    assert len(codes) == len(set(codes))
    drawn = re.findall(r"^[ │├└─]*([A-Z]\w+) +(\d{3}) ?(\w*)$", f"{errors.__doc__}{picture_errors.__doc__}", re.MULTILINE)
    expected = {(e.__name__, str(e.http_status), "" if e is errors.BadRequest else e.code) for e in tree()}
    assert set(drawn) == expected


def test_docs_list_every_code_and_no_other() -> None:
    table = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted((e.code, str(e.http_status)) for e in tree())


def test_docs_list_every_field_and_every_route(document: Any) -> None:
    text = "".join((ROOT / "docs" / page).read_text() for page in ("api.md", "openai.md", "a1111.md"))
    assert set(re.findall(r"^\| `(\w+)` \| [^|\d]", text, re.MULTILINE)) >= set(native.GenerateRequest.model_fields)
    for method, path in ROUTES:
        assert f"`{method.upper()} {path}`" in text


def test_every_field_of_a_request_is_of_the_draft_or_of_the_terms() -> None:
    draft, terms = set(Draft.__dataclass_fields__), set(Terms.__dataclass_fields__)
    assert not draft & terms
    assert set(native.GenerateRequest.model_fields) == draft | terms


def test_the_request_schema_says_what_is_enforced(document: Any) -> None:
    schema = document["components"]["schemas"]["GenerateRequest"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert all("description" in field or "enum" in str(field) for field in schema["properties"].values())


def test_headers_and_parameters_are_documented(document: Any) -> None:
    def parameters(path: str, method: str) -> set[str]:
        return {p["name"].lower() for p in document["paths"][path][method]["parameters"]}

    assert parameters("/generate", "post") == {"prefer", "idempotency-key", "dry_run"}
    assert parameters("/jobs", "get") == {"status", "limit", "cursor"}
    assert parameters("/jobs/{id}/events", "get") == {"id", "last-event-id"}
    assert parameters("/images/{key}", "get") == {"key", "exp", "kid", "sig", "range", "if-none-match", "if-range"}
    accepted = document["paths"]["/generate"]["post"]["responses"]["202"]["headers"]
    assert set(accepted) == {"Location", "Preference-Applied", "Idempotency-Replayed"}
    for status in ("429", "503"):
        assert "Retry-After" in document["paths"]["/generate"]["post"]["responses"][status]["headers"]
    bounded = document["paths"]["/generate"]["post"]["responses"]["429"]["headers"]
    assert set(bounded) == {"Retry-After", "RateLimit-Policy", "RateLimit"}
    assert set(document["paths"]["/jobs/{id}/events"]["get"]["responses"]["429"]["headers"]) == {"Retry-After"}
    event = document["paths"]["/jobs/{id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    assert event["properties"]["data"]["contentSchema"]["required"] == ["steps_done", "steps_total"]


def test_real_answers_fit_their_schemas(gateway: Live, document: Any) -> None:
    paths = document["paths"]
    job = gateway.post({"prompt": "a red apple", "width": 128}).json()
    check(document, paths["/generate"]["post"], 202, job)
    check(document, paths["/jobs/{id}"]["get"], 200, gateway.http.get(f"/jobs/{job['id']}").json())
    check(document, paths["/jobs/{id}"]["delete"], 200, gateway.http.delete(f"/jobs/{job['id']}").json())
    check(document, paths["/jobs/{id}/images"]["delete"], 200, gateway.http.delete(f"/jobs/{job['id']}/images").json())
    for body in ({"prompt": "a red apple"}, {"prompt": "a", "seed": 1, "reuse": True, "webhook": {"url": "https://hooks.example.com/"}}):
        answer = gateway.http.post("/generate?dry_run=true", json=body)
        assert answer.status_code == 200
        check(document, paths["/generate"]["post"], 200, answer.json())
    batch = gateway.http.post("/batches", json=["a red apple", 5]).json()
    check(document, paths["/batches"]["post"], 202, batch)
    check(document, paths["/batches/{id}"]["get"], 200, gateway.http.get(f"/batches/{batch['id']}").json())
    line = paths["/batches/{id}/results"]["get"]["responses"]["200"]["content"]["application/x-ndjson"]["itemSchema"]
    for text in gateway.http.get(f"/batches/{batch['id']}/results").text.splitlines():
        Draft202012Validator(line).validate(json.loads(text))
    refused = gateway.http.post("/batches?strict=true", json=["a", 5])
    check(document, paths["/batches"]["post"], 400, refused.json())
    for path in (
        "/batches",
        "/jobs",
        "/webhooks/deliveries",
        "/models",
        "/samplers",
        "/schedules",
        "/guidances",
        "/workers",
        "/healthz",
        "/readyz",
    ):
        answer = gateway.http.get(path)
        assert answer.status_code == 200
        check(document, paths[path]["get"], 200, answer.json())
    for body in ({}, {"prompt": "a", "sampler": "x"}, {"prompt": "a", "x": 1}):
        answer = gateway.post(body)
        check(document, paths["/generate"]["post"], answer.status_code, answer.json())
    check(document, paths["/jobs/{id}"]["get"], 404, gateway.http.get("/jobs/none").json())


def test_the_examples_of_the_document_are_accepted(gateway: Live, document: Any) -> None:
    for example in document["components"]["schemas"]["GenerateRequest"]["examples"]:
        assert gateway.post(example).status_code == 202

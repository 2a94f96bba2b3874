"""The OpenAPI document: what FastAPI writes, made true."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.doorkeeper import SCHEMES, is_open
from service.settings import Settings


def openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The document, made once; of keys it says what is so with these settings."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            _make_true(operation["responses"])
            for parameter in operation.get("parameters", ()):
                _never_null(parameter["schema"])
        if settings.keys_in_force:
            _say_who_may(schema, settings)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _make_true(responses: dict[str, Any]) -> None:
    """Three things that FastAPI writes without being asked: its own validation answer, errors as event streams where the
    good answer is one, and examples without their nulls."""
    validation = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if validation.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
    for response in responses.values():
        error = response.get("content", {}).get("application/json", {})
        if "examples" not in error:
            continue
        response["content"] = {"application/json": error | {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        for example in error["examples"].values():
            example["value"]["error"].setdefault("param", None)


def _never_null(schema: dict[str, Any]) -> None:
    """A header or a part of a query is text: it can be left out, but never null."""
    kinds = schema.get("anyOf", [])
    others = [kind for kind in kinds if kind != {"type": "null"}]
    if len(others) == 1 < len(kinds):
        del schema["anyOf"]
        schema.update(others[0])


def _say_who_may(schema: dict[str, Any], settings: Settings) -> None:
    """Which addresses want a key, and how it is sent."""
    schema["components"]["securitySchemes"] = dict(SCHEMES)
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            operation["security"] = [] if is_open(path, settings) else [{name: []} for name in SCHEMES]

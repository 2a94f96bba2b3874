"""Every route in docs/api.md, with a curl: made from the OpenAPI document. `python -m benchmarks.api_docs` writes it anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sampler_docs import section
from service.app import create_app
from service.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
COMMAND = "python -m benchmarks.api_docs"
SETTINGS = Settings.model_construct()  # the defaults, whatever the environment says

# What stands for the parameters of an address: shell variables that the page sets, or something that is there.
PLACES = {
    "/batches/{id}": {"id": "$BATCH"},
    "/webhooks/deliveries/{id}": {"id": "$DELIVERY"},
    "/schedules/{id}.svg": {"id": "karras"},
    "/v1/models/{model}": {"model": "$MODEL"},
    "/sdapi/v1/{what}": {"what": "sd-vae"},
    "/jobs/{id}": {"id": "$JOB"},
    "/uploads/{key}": {"key": "$UPLOAD"},
}
FILES = {"application/zip": "pictures.zip", "image/svg+xml": "schedule.svg", "image/png": "picture.png"}
SIGNED = "/images/{key}"  # its URL comes whole from a job
EVERYWHERE = frozenset({"internal_error", "key_missing", "key_invalid", "host_refused"})
STREAMS = frozenset({"text/event-stream"})

Document = dict[str, Any]
Operation = dict[str, Any]


def document() -> Document:
    return create_app(SETTINGS).openapi()


def operations(told: Document) -> Iterator[tuple[str, str, Operation]]:
    """Method, address and operation, in the order of the document."""
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def curl(method: str, path: str, operation: Operation, told: Document) -> str:
    """One line of shell."""
    good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    kinds = list(good.get("content", {}))
    words = ["curl -sN" if STREAMS & set(kinds) else "curl -s"]
    if method == "HEAD":
        words = ["curl -sI"]
    elif method != "GET" and not (method == "POST" and "requestBody" in operation):
        words.append(f"-X {method}")
    words.append('"$IMAGE"' if path == SIGNED else f'"$CELADON{_filled(path)}"')
    if "requestBody" in operation:
        media_type, body = next(iter(operation["requestBody"]["content"].items()))
        example = _example(body, told)
        if media_type == "multipart/form-data" and isinstance(example, dict):
            words += [f"-F {shlex.quote(f'{name}={value}')}" for name, value in example.items()]
            return " ".join(words)
        said = json.dumps(example, ensure_ascii=False)
        words.append(f"-H {shlex.quote(f'Content-Type: {media_type}')} -d {shlex.quote(said)}")
    if method != "HEAD" and (file := next((FILES[kind] for kind in kinds if kind in FILES), "")):
        words.append(f"-o {file}")
    return " ".join(words)


def _filled(path: str) -> str:
    for place, values in PLACES.items():
        if path.startswith(place):
            return path.format(**values)
    return path


def _example(body: Operation, told: Document) -> object:
    """That of the body, or the first one of its schema."""
    if "example" in body:
        return body["example"]
    return _resolved(body["schema"], told)["examples"][0]


def _resolved(schema: Document, told: Document) -> Document:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Document = told["components"]["schemas"][name] if name else schema
    return found


def route(method: str, path: str, operation: Operation, told: Document) -> str:
    """One route as Markdown."""
    lines = [f"### `{method} {path}`", "", f"{operation['summary']}. {_one_line(operation.get('description', ''))}".strip(), ""]
    told_of = [p for p in operation.get("parameters", ()) if p["in"] != "path" or "description" in p]
    lines += [f"* `{p['name']}` ({_about(p)}): {_one_line(p.get('description', ''))}".removesuffix(": ") for p in told_of]
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        lines.append(f"* body `{media_type}`{_fields(_resolved(body['schema'], told))}")
    answers = sorted(operation["responses"].items())
    lines += [f"* {status}: {_answer(answer)}" for status, answer in answers if status < "400"]
    errors = [f"{status} {_codes(answer)}" for status, answer in answers if status >= "400" and _codes(answer)]
    lines += [f"* errors: {'; '.join(errors)}"] if errors else []
    return "\n".join([*lines, "", "```sh", curl(method, path, operation, told), "```", ""])


def _about(parameter: Document) -> str:
    schema = parameter["schema"]
    values = f", one of {', '.join(f'`{value}`' for value in schema['enum'])}" if "enum" in schema else ""
    least, most = schema.get("minimum"), schema.get("maximum")
    bounds = f", {least:g} to {most:g}" if least is not None and most is not None else ""
    default = f", `{schema['default']}` by default" if schema.get("default") not in (None, "") else ""
    return f"{parameter['in']}{', required' if parameter.get('required') and parameter['in'] != 'path' else ''}{values}{bounds}{default}"


def _fields(schema: Document) -> str:
    required = schema.get("required", ())
    names = [f"**`{name}`**" if name in required else f"`{name}`" for name in schema.get("properties", {})]
    return f": {', '.join(names)}" if names else ""


def _codes(answer: Document) -> str:
    """Those of an error, but for those that every route has."""
    found = [code for content in answer.get("content", {}).values() for code in content.get("examples", {})]
    return ", ".join(f"`{code}`" for code in found if code not in EVERYWHERE)


def _answer(answer: Document) -> str:
    said = _one_line(answer.get("description", ""))
    kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
    return "; ".join(filter(None, (said if said != "Successful Response" else "", kinds))) or "done"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def routes() -> str:
    told = document()
    return "\n" + "\n".join(route(method, path, operation, told) for method, path, operation in operations(told)) + "\n"


def written() -> str:
    """The page with the routes of today."""
    return section(PAGE.read_text(), COMMAND, routes())


if __name__ == "__main__":
    PAGE.write_text(written())

"""Checks of ours that schemathesis runs beside its own; it finds this module by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis

# What a request may be refused for although it fits the document: what there is depends on models, settings and other fields. How a
# request is built does not, so that it is never one of the others (missing_field, unknown_field, invalid_header ...).
DEPENDS = frozenset({
    "unknown_model", "unknown_sampler", "unknown_schedule", "unknown_option", "invalid_size", "webhook_refused", "invalid_batch",
    "not_supported", "invalid_value", "invalid_picture", "picture_truncated", "picture_moves", "picture_trailing_data",
    "picture_too_large", "kind_not_supported",
})  # fmt: skip


@schemathesis.check
def refused_for_what_no_schema_can_say(ctx: Any, response: Any, case: Any) -> None:
    """A request that fits its schema is refused for nothing that the schema could have said: neither its form nor a type."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    error = response.json()["error"]
    wrong_type = ": Input should be " in error["message"] and not error["message"].endswith("a valid integer")  # it calls 20.0 an integer
    of_a_line = (error["param"] or "").startswith("defaults.")  # the document does not say the types of what lines have in common
    if error["code"] == "missing_field" and error["param"] in ("image", "mask"):
        return  # needed by the kind that is asked for
    assert error["code"] in DEPENDS and (of_a_line or not wrong_type), f"{case.operation.label} refuses what its schema allows: {error}"


@schemathesis.check
def every_error_has_the_one_shape(ctx: Any, response: Any, case: Any) -> None:
    """Nothing inner is told, and the request id is that of the header."""
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    error = response.json()["error"]
    assert {"code", "message", "param", "request_id"} <= error.keys()
    assert [error["request_id"]] == list(response.headers["x-request-id"])
    for leak in ("Traceback", "site-packages", ".py", "redis.exceptions", "pydantic"):
        assert leak not in error["message"]

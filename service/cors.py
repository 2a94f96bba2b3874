"""What pages of the origins that the settings name may ask, by their browsers' rules (CORS), and the refusal in our one shape."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.error_answers import respond
from service.errors import BadRequest

METHODS = ("GET", "HEAD", "POST", "DELETE")
READABLE = (
    "Location", "Preference-Applied", "Idempotency-Replayed", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-Id",
    "Content-Range", "ETag",
)  # fmt: skip
OWN = frozenset({"content-length", "content-type"})  # of the body that is replaced


class CorsRefused(BadRequest):
    code = "cors_refused"
    about = "Pages of that origin may not ask here, or not in that way."


class Cors(CORSMiddleware):
    """No cookies: there are none. Any header may be sent, since clients of OpenAI have a dozen of their own."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        super().__init__(app, allow_origins=origins, allow_methods=METHODS, allow_headers=["*"], expose_headers=READABLE)

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        return answer if answer.status_code < 400 else _Refusal(answer)


class _Refusal(Response):
    """A refused preflight, with the headers that it has. A browser shows its reason to whoever writes the page."""

    def __init__(self, plain: Response) -> None:
        super().__init__()
        self._kept = {name: value for name, value in plain.headers.items() if name not in OWN}
        self._what = bytes(plain.body).decode().removeprefix("Disallowed CORS ")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = CorsRefused(f"{CorsRefused.about} What is not allowed: {self._what}.", headers=self._kept)
        await respond(error, scope)(scope, receive, send)

"""The studio page and its files: a client of this API like any other. Nothing in it is secret, so it wants no key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.staticfiles import StaticFiles

from service.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "ui"

# Only its own scripts and styles, and no other host, but for pictures that a store hands out. Previews are data URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:{store}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CACHE = "no-cache"  # asked each time, answered with 304 until a release changes it
AMAZON = "https://*.amazonaws.com"

router = APIRouter(include_in_schema=False)
_files = StaticFiles(directory=FOLDER)


@router.get("/")
@router.head("/")
async def page(request: Request) -> Response:
    """Raises HTTPException 404 for a slash with a line break behind it, which the framework's pattern lets through."""
    if request.scope["path"] != "/":
        raise HTTPException(404)
    return await _answer("index.html", request)


@router.get("/ui/{name}")
@router.head("/ui/{name}")
async def file(name: str, request: Request) -> Response:
    """Raises starlette's HTTPException 404."""
    return await _answer(name, request)


async def _answer(name: str, request: Request) -> Response:
    response = await _files.get_response(name, request.scope)
    settings: Settings = request.app.state.gateway.settings
    response.headers.update({"Content-Security-Policy": POLICY.format(store=_store(settings)), "Cache-Control": CACHE})
    return response


def _store(settings: Settings) -> str:
    """Where pictures come from beside this gateway, as a policy names it."""
    if settings.image_delivery == "stream":
        return ""
    return f" {settings.s3_public_endpoint or settings.s3_endpoint or AMAZON}"

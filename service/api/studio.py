"""The studio page and its files: a client of this API like any other. Nothing in it is secret, so it wants no key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parent.parent / "ui"

# Only its own scripts and styles, and no other host. Previews are data URLs.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",  # asked each time, answered with 304 until a release changes it
}

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
    response.headers.update(HEADERS)
    return response

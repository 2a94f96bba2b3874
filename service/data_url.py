"""Pictures that come as text, and what pictures are said to be, whichever way they come in (RFC 2397, RFC 4648)."""

from __future__ import annotations

import base64
import binascii

from service.picture_errors import InvalidPicture

SCHEME = "data:"
CLAIMS = frozenset({"", "application/octet-stream", "image/png", "image/jpeg", "image/jpg", "image/webp"})  # the first two claim nothing


def is_data_url(said: str) -> bool:
    return said[: len(SCHEME)].lower() == SCHEME


def check_claim(media_type: str, param: str) -> None:
    """Which of the three it is, its bytes say: names of files are often wrong there. What claims to be something else is refused.

    Raises InvalidPicture."""
    if media_type.partition(";")[0].strip().lower() not in CLAIMS:
        raise InvalidPicture(f"{param} is said to be no picture that is taken: send image/png, image/jpeg or image/webp.", param=param)


def decoded(param: str, url: str) -> bytes:
    """What a data URL in base64 holds. Raises InvalidPicture."""
    about, comma, text = url[len(SCHEME) :].partition(",")
    media_type, semicolon, encoding = about.rpartition(";")
    if not (comma and semicolon) or encoding.strip().lower() != "base64":
        raise InvalidPicture(f"{param} must be a data URL in base64: data:image/png;base64,...", param=param)
    check_claim(media_type, param)
    return from_base64(param, text)


def from_base64(param: str, text: str) -> bytes:
    """Raises InvalidPicture."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidPicture(f"{param} is not base64.", param=param) from None

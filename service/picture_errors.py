"""Errors of pictures that come in, in the tree that `service.errors` draws."""

from __future__ import annotations

from service.errors import BadRequest, NotFound


class InvalidPicture(BadRequest):
    code = "invalid_picture"
    about = "A picture is a PNG, JPEG or WebP that does not move."


class KindNotSupported(BadRequest):
    code = "kind_not_supported"
    about = "The model cannot do jobs of that kind."


class PictureNotFound(NotFound):
    code = "picture_not_found"
    about = "No picture of yours is stored under that key; perhaps its time of keeping is over."

"""Errors of pictures that come in. They hang in the tree of `service.errors`:

BadRequest                        400
├── InvalidPicture                400 invalid_picture
│   ├── PictureTruncated          400 picture_truncated
│   ├── PictureMoves              400 picture_moves
│   ├── PictureTooLarge           400 picture_too_large
│   └── PictureTrailingData       400 picture_trailing_data
├── PictureUrlRefused             400 picture_url_refused
├── PictureUrlFailed              400 picture_url_failed
└── KindNotSupported              400 kind_not_supported
ApiError                          500 internal_error
├── TooManyUploads                429 too_many_uploads
└── UploadsBusy                   503 uploads_busy
"""

from __future__ import annotations

from service.errors import ApiError, BadRequest, NotFound


class InvalidPicture(BadRequest):
    code = "invalid_picture"
    about = "A picture is a PNG, JPEG or WebP that does not move."


class KindNotSupported(BadRequest):
    code = "kind_not_supported"
    about = "The model cannot do jobs of that kind."


class PictureNotFound(NotFound):
    code = "picture_not_found"
    about = "No picture of yours is stored under that key; perhaps its time of keeping is over."


class PictureTruncated(InvalidPicture):
    code = "picture_truncated"
    about = "The picture's file ends before the picture does."


class PictureMoves(InvalidPicture):
    code = "picture_moves"
    about = "The picture has more than one frame."


class PictureTooLarge(InvalidPicture):
    code = "picture_too_large"
    about = "The picture has too many pixels."


class PictureTrailingData(InvalidPicture):
    code = "picture_trailing_data"
    about = "The file goes on behind the end of the picture. Save the picture anew, as one picture and nothing else."


class PictureUrlRefused(BadRequest):
    code = "picture_url_refused"
    about = "The picture's URL is none that this service asks."


class PictureUrlFailed(BadRequest):
    code = "picture_url_failed"
    about = "No picture came from the URL."


class TooManyUploads(ApiError):
    http_status = 429
    code = "too_many_uploads"
    about = "You have as many pictures here as you may. Delete some, or come again after the seconds of Retry-After."
    retry_after_s = 60


class UploadsBusy(ApiError):
    http_status = 503
    code = "uploads_busy"
    about = "Too many pictures come in at once. Come again after the seconds of Retry-After."
    retry_after_s = 5


OF_PICTURES = (  # what a request may hear that brings some
    InvalidPicture, PictureTruncated, PictureMoves, PictureTooLarge, PictureTrailingData, KindNotSupported, TooManyUploads, UploadsBusy,
)  # fmt: skip

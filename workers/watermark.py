"""An invisible watermark: up to eight bytes of text in the grain of a picture, and how they are read again.

Spread spectrum (Cox et al. 1997) with the text in places rather than signs. Eight pseudo-random patterns of 128 x 128 pixels, of middle
frequencies alone, are added to the brightness and repeat over the picture. Seven of them are moved, each to one of 64 x 64 places, which
is 12 bits: 64 of text and 20 that check it. The eighth stays where it is and tells how far a picture was cropped. The grain is fainter
where a picture is plain. To read, what a picture is itself is taken away (its smooth part, and the height of its local contrast), the
repeats are laid upon each other, and each pattern is looked for at every place at once by Fourier transforms. A picture of another
service may be drawn upon and marked anew: then each pattern has two places, and the check says which of them belong together.

The patterns are public: whoever has this file can read, remove and forge a mark. It says where a picture comes from while nobody minds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from workers.watermark_text import SYMBOLS, places_of, text_of

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIDE = 128  # of the patterns, in pixels
BAND = 14, 36  # cycles a side: coarser ones show, finer ones do not survive a JPEG
PLACES = 64  # that a pattern may be moved to, each way, in steps of two pixels
LEAST = 4.2  # mean height of the seven peaks, in deviations: 3.6 with a deviation of 0.13 where there is no mark
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
PLAIN, CONTRAST, MOST = 1.0, 0.3, 3.0  # amplitude in grey levels where a picture is plain, more with the root of its contrast, at most
MARKS = 2  # that are read in one picture
SHIFTS = 3  # of a cropped picture, the likeliest ones
SMALLEST, FINE, LARGEST = 64, 512, 2048  # widths that a picture may have had before it was resized: of every 8 pixels, then of 64
RESIZED = 0.4, 2.5  # times that


class Watermark:
    """Marks and reads. Holds nothing but the patterns, so it may be shared by threads."""

    def __init__(self) -> None:
        rows, columns = np.fft.fftfreq(SIDE, 1 / SIDE), np.fft.rfftfreq(SIDE, 1 / SIDE)
        radius = np.hypot(rows[:, None], columns[None])
        self._band = (radius >= BAND[0]) & (radius < BAND[1])
        self._spectra = np.stack([self._spectrum(i) for i in range(SYMBOLS + 1)])  # [8, 128, 65]
        self._patterns = _images(self._spectra)  # [8, 128, 128]

    def mark(self, pixels: Pixels, text: str, strength: float) -> Pixels:
        """The picture [H, W, 3] with `text` in it, which must fit. Strength 1 is a PSNR of some 43 dB. Raises ValueError."""
        height, width, _ = pixels.shape
        tile = self._patterns[0].copy()
        for pattern, place in zip(self._patterns[1:], places_of(text), strict=True):
            tile += np.roll(pattern, (2 * (place // PLACES), 2 * (place % PLACES)), (0, 1))
        tile /= tile.std()
        grain = np.tile(tile, (-(-height // SIDE), -(-width // SIDE)))[:height, :width]
        grain *= strength * _amplitude(_luma(pixels))
        marked: Pixels = np.clip(np.round(pixels + grain[..., None]), 0, 255).astype(np.uint8)
        return marked

    def read(self, pixels: Pixels) -> str | None:
        """The plainest text in a picture [H, W, 3] that has the size it was drawn in, cropped or not; None where none is found."""
        return next(iter(self.texts(pixels)), None)

    def texts(self, pixels: Pixels) -> list[str]:
        """All that are read there, two of a crop at most, the plainest first: a marked picture may have been drawn upon and marked by
        another service.
        """
        heights = {text: height for found in self._by_crop(pixels) for text, height in found.items()}
        return sorted(heights, key=lambda text: -heights[text])

    def says(self, pixels: Pixels, text: str) -> bool:
        """Whether that is one of them; sooner told than all."""
        return any(text in found for found in self._by_crop(pixels))

    def find(self, pixels: Pixels) -> list[str]:
        """The same of one that may have been resized since, not both resized and cropped. Seconds, where there is none."""
        if texts := self.texts(pixels):
            return texts
        image = Image.fromarray(pixels)
        for size in _sizes(image.width, image.height):
            if texts := self.texts(np.asarray(image.resize(size, Image.Resampling.BICUBIC))):
                return texts
        return []

    def _by_crop(self, pixels: Pixels) -> Iterator[dict[str, float]]:
        """Texts and how plain they are, if it was not cropped, and by how much it likeliest was."""
        peaks = self.correlations(pixels)
        yield _texts(peaks, (0, 0))
        for at in np.argsort(peaks[0], axis=None)[-SHIFTS:][::-1].tolist():
            yield _texts(peaks, divmod(at, SIDE))

    def _spectrum(self, index: int) -> NDArray[np.complex64]:
        """Of a pattern: random phases within the band. A hash makes them, which no version of a library changes."""
        noise = np.frombuffer(hashlib.shake_256(f"celadon watermark 1, {index}".encode()).digest(2 * SIDE * SIDE), "<u2")
        found = np.fft.rfft2(noise.reshape(SIDE, SIDE) - 32767.5)
        return np.where(self._band, found / np.abs(found), 0).astype(np.complex64)

    def correlations(self, pixels: Pixels) -> Floats:
        """[H, W, 3] -> [8, 128, 128]: how well each pattern fits at each place, in deviations; zeros of a picture without any grain."""
        luma = _luma(pixels)
        rest = luma - gaussian_filter(luma, 2.5)
        rest /= np.sqrt(gaussian_filter(rest * rest, 1.5)) + 0.5
        height, width = (-(-side // SIDE) for side in rest.shape)
        whole = np.zeros((height * SIDE, width * SIDE), np.float32)
        whole[: rest.shape[0], : rest.shape[1]] = rest
        seen = np.fft.rfft2(whole.reshape(height, SIDE, width, SIDE).sum((0, 2)))
        seen = np.where(self._band, seen / np.sqrt(np.abs(seen) + 1e-9), 0)  # halfway to phases alone: loud frequencies are the picture's
        found = _images(seen * self._spectra.conj())
        found /= found.std((1, 2), keepdims=True) + 1e-9
        return found


def _images(spectra: NDArray[np.complexfloating]) -> Floats:
    return np.fft.irfft2(spectra, (SIDE, SIDE)).astype(np.float32)


def _luma(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) @ LUMA


def _amplitude(luma: Floats) -> Floats:
    """[H, W], in grey levels: eyes see less where much is going on."""
    mean = gaussian_filter(luma, 2.0)
    variance = np.maximum(gaussian_filter(luma * luma, 2.0) - mean * mean, 0)
    amplitude: Floats = np.minimum(PLAIN + CONTRAST * variance**0.25, MOST)
    return amplitude


def _texts(peaks: Floats, shift: tuple[int, int]) -> dict[str, float]:
    """What the places say of a picture that was cropped by so much, and how high they stand; nothing where they are noise.

    Two marks have 128 ways to be put together. All but two of them are random to the check, which takes one in a million for a text.
    """
    moved = np.roll(peaks[1:], (-shift[0], -shift[1]), (1, 2))[:, ::2, ::2].reshape(SYMBOLS, -1)
    if moved.max(1).mean() < LEAST:
        return {}
    places = np.argpartition(moved, -MARKS, 1)[:, -MARKS:]
    heights = np.take_along_axis(moved, places, 1)
    found: dict[str, float] = {}
    for seven, high in zip(product(*places.tolist()), product(*heights.tolist()), strict=True):
        if (height := sum(high) / SYMBOLS) >= LEAST and (text := text_of(seven)) is not None:
            found[text] = height
    return found


def _sizes(width: int, height: int) -> Iterator[tuple[int, int]]:
    """What a picture may have measured before it was resized, the nearest first: models draw in steps of 8 pixels or more."""
    least, most = (round(width * factor) for factor in RESIZED)
    sides = [*range(SMALLEST, FINE, 8), *range(FINE, LARGEST + 1, 64)]
    for side in sorted((s for s in sides if least <= s <= most and s != width), key=lambda s: max(s / width, width / s)):
        size = side, max(1, round(height * side / width))
        if size[0] * size[1] <= LARGEST**2:  # nobody draws larger ones
            yield size

"""`celadon plot`: schedules as lines, and the two processes as a sheet of pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celadon.pairs import ratio, typed
from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from PIL.Image import Image

    from celadon.pairs import Pair, Pairs
    from workers.model import Opened

MARGIN, LINE = 8, 16  # pixels
STEPS = 20
NOTHING = 2.0**-12  # an alpha of 0 has no place on a logarithmic axis: it is drawn where samplers begin that need another


def schedules(
    pairs: Pairs, names: Sequence[str], steps: int | None, sampler: str, options: Sequence[str], output: str, **part: float
) -> None:
    """Write one SVG of these schedules, or of a `part` of each as in `compile_table`. Raises ValueError, StartRefused, OSError."""
    from service import schedule_plot

    if len(names) > schedule_plot.MOST:
        raise StartRefused(f"at most {schedule_plot.MOST} schedules can be told apart in one picture")
    for option in options:
        if "." in option.partition("=")[0] and not any(option.startswith(f"{name}.") for name in names):
            raise StartRefused(f"the option {option!r} is of none of the schedules {', '.join(names)}")
    curves = {label: curve for name in names for label, curve in [_curve(pairs, name, steps, sampler, options, part)]}
    text = schedule_plot.svg(curves, pairs.folder.resolve().name)
    if output == "-":
        sys.stdout.write(text)
        return
    Path(output).write_text(text)
    print(output)


def _curve(
    pairs: Pairs, name: str, steps: int | None, sampler: str, options: Sequence[str], part: Mapping[str, float]
) -> tuple[str, list[float]]:
    """A schedule with its options and its part as a label, and its logSNR over the steps."""
    from math import log

    mine = [option.removeprefix(f"{name}.") for option in options if option.startswith(f"{name}.") or "." not in option.partition("=")[0]]
    given = any(option.partition("=")[0].strip() == "sigmas" for option in mine)
    pair = pairs.pair(sampler, name, steps or (None if given else STEPS), [], mine, **part)
    table = pair.table
    firsts = [i for i in range(len(table)) if i == 0 or table.step[i] != table.step[i - 1]]
    told = [*map(typed, mine), *pair.part.items()]
    said = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in told)
    return f"{pair.schedule} ({said})" if said else pair.schedule, [2 * log(max(table.alpha[i], NOTHING) / table.sigma[i]) for i in firsts]


def process(pair: Pair, prompt: str, picture: Path | None, guidance: float | None, seed: int, output: Path) -> None:
    """Write the sheet. Raises ValueError, StartRefused, OSError."""
    import numpy as np

    from pipelines.process import backward, forward
    from pipelines.sampler_list import samplers_of

    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise StartRefused(f"-o {output}: pictures are .png, .jpg or .webp")
    if picture and not picture.is_file():
        raise StartRefused(f"--picture {picture}: there is no such file")
    given = _latents(pair.folder, picture) if picture else None
    opened = _opened(pair.folder)
    decode, card = opened.stages.decode, opened.stages.card
    usual = samplers_of(opened.stages.ladder.space)[pair.sampler].guidance or card.defaults.guidance
    scale = usual if guidance is None else guidance
    forming, last = backward(opened.stages, opened.denoiser, pair.table, prompt, seed, scale)
    steps = [i for i in range(len(pair.table)) if i == 0 or pair.table.step[i] != pair.table.step[i - 1]]
    x0 = last if given is None else given
    noisy = [decode(x) for row, x in enumerate(forward(x0, pair.table, seed)) if len(pair.table) - 1 - row in steps]
    lines: dict[str, list[Any]] = {
        "q(x_t | x_0): noise is added": [decode(x0), *noisy],
        "p(x_t-1 | x_t): noise is taken away": [*(decode(forming[i].x) for i in steps), decode(last)],
        "the estimate of x_0 at each level": [*(decode(forming[i].denoised) for i in steps), decode(last)],
    }
    ratios = [f"{ratio(pair.table.alpha[i], pair.table.sigma[i]):.3g}" for i in steps] + ["0"]
    labels = [list(reversed(ratios)), ratios, ratios]
    sheet({name: [np.asarray(p) for p in pictures] for name, pictures in lines.items()}, labels).save(output, **_saving(output))
    print(output)


def _opened(folder: Path) -> Opened:
    """The backend and precision that a worker would take on this CPU, and its cache. Raises StartRefused."""
    from celadon.settings import of_worker
    from workers.model import ModelRefused, open_backend

    try:
        return open_backend(of_worker(redis_url="unix:///embedded", model=str(folder), device="cpu"))
    except ModelRefused as error:
        raise StartRefused(str(error)) from error


def _latents(folder: Path, picture: Path) -> Any:
    """A picture file encoded: [C, h, w]. Only torch has the encoding half of the VAE. Raises StartRefused, OSError."""
    from importlib.util import find_spec

    if not find_spec("torch"):
        raise StartRefused("--picture needs torch, which is not installed: make install-gpu, or pip install celadon[gpu]")
    import torch

    from pipelines.loading import load
    from pipelines.text_to_image import encode_picture

    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    return encode_picture(checkpoint, _pixels(picture, (checkpoint.card.width, checkpoint.card.height))).mean


def sheet(lines: Mapping[str, Sequence[Any]], labels: Sequence[Sequence[str]]) -> Image:
    """Lines of pictures [H, W, 3], each under its title and every picture above its label."""
    from PIL import Image, ImageDraw

    height, width = max(p.shape[0] for row in lines.values() for p in row), max(p.shape[1] for row in lines.values() for p in row)
    columns, tall = max(map(len, lines.values())), height + 2 * LINE + MARGIN
    page = Image.new("RGB", (2 * MARGIN + columns * (width + 2), MARGIN + len(lines) * tall), "white")
    pen = ImageDraw.Draw(page)
    for line, ((title, pictures), names) in enumerate(zip(lines.items(), labels, strict=True)):
        top = MARGIN + line * tall
        pen.text((MARGIN, top), title, fill="black")
        for column, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            left = MARGIN + column * (width + 2)
            page.paste(Image.fromarray(picture), (left, top + LINE))
            pen.text((left, top + LINE + height + 1), name, fill="#555")
    return page


def _pixels(path: Path, size: tuple[int, int]) -> Any:
    """A picture file in the model's size, its middle cut out: [H, W, 3]."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size))


def _saving(path: Path) -> dict[str, Any]:
    return {"optimize": True} if path.suffix.lower() == ".png" else {"quality": 90}

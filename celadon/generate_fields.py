"""What the options of `celadon generate` say, as fields of POST /generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celadon.generate_options import AS_THEY_ARE
from celadon.pairs import options_of

SIDES = ("left", "top", "right", "bottom")


def fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given; files as paths, which are to be uploaded. Raises ValueError."""
    found = {name: said[name] for name in AS_THEY_ARE}
    found |= {f"{of}_options": options_of(said[f"{of}_option"]) for of in ("sampler", "schedule", "guidance")}
    found |= {
        "loras": [_lora(text) for text in said["lora"]],
        "embeddings": said["embedding"],
        "outpaint": None if said["outpaint"] is None else _outpaint(said["outpaint"]),
        "upscale": _upscale(said["upscale"], said["upscale_option"]),
        "controlnet": _controlnet(said["control"], said["control_option"]),
    }
    given = {name: value for name, value in found.items() if value not in (None, {}, [])}
    more = options_of(said["set_"])
    if twice := sorted(more.keys() & {"prompt", *given}):
        raise ValueError(f"{twice[0]} is given twice: leave it out of --set")
    return given | more


def _lora(text: str) -> dict[str, Any]:
    """A colon before a number ends the name."""
    name, colon, weight = text.rpartition(":")
    try:
        return {"name": name, "weight": float(weight)} if colon else {"name": text}
    except ValueError:
        return {"name": text}


def _outpaint(text: str) -> dict[str, int]:
    try:
        return dict(zip(SIDES, map(int, text.split(",")), strict=True))
    except ValueError:
        raise ValueError(f"--outpaint is written LEFT,TOP,RIGHT,BOTTOM in pixels, not {text!r}") from None


def _upscale(factor: float | None, written: Sequence[str]) -> Any:
    options = options_of(written)
    if factor is None or not options:
        return options or factor
    if "factor" in options:
        raise ValueError("the factor is given twice: leave it out of --upscale-option")
    return {"factor": factor} | options


def _controlnet(text: str | None, written: Sequence[str]) -> dict[str, Any]:
    options = options_of(written)
    if text is None:
        if options:
            raise ValueError("--control-option goes with --control NAME=FILE")
        return {}
    name, equals, file = text.partition("=")
    if not equals or not name or not Path(file).is_file():
        raise ValueError(f"--control is written NAME=FILE, of a file that there is, not {text!r}")
    if twice := sorted(options.keys() & {"name", "image"}):
        raise ValueError(f"the {twice[0]} is given twice: leave it out of --control-option")
    return {"name": name, "image": Path(file)} | options

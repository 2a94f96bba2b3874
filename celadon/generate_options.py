"""The options of `celadon generate`, a table of which typer makes a command. A bracket that opens is escaped: help texts are markup."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from celadon.eyes import SamplerOption, ScheduleOption

Command = TypeVar("Command", bound=Callable[..., None])

Prompt = Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)]
Output = Annotated[str, typer.Option("--output", "-o", help="File or folder; - writes to standard output.")]
PICTURES, NETWORKS, FURTHER = "From a picture, and larger", "LoRAs, embeddings, ControlNets", "Whatever else the API takes"


def _option(kind: Any, help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, show_default=False, rich_help_panel=panel, **more)]


def _word(help: str, *names: str, **more: Any) -> Any:
    return _option(str | None, help, *names, **more)


def _count(help: str, *names: str, **more: Any) -> Any:
    return _option(int | None, help, *names, **more)


def _number(help: str, *names: str, **more: Any) -> Any:
    return _option(float | None, help, *names, **more)


def _many(help: str, *names: str, **more: Any) -> Any:
    return _option(list[str], f"{help}; may be repeated.", *names, **more)


def _file(help: str) -> Any:
    return _option(Path | None, help, panel=PICTURES, exists=True, dir_okay=False)


AS_THEY_ARE: Mapping[str, Any] = {  # by their fields of POST /generate
    "negative_prompt": _word("What it should not show.", "--negative"),
    "prompt_syntax": _word("a1111 knows (weights:1.3), \\[less] and BREAK. \\[plain]", "--prompt-syntax"),
    "width": _count("Pixels."),
    "height": _count("Pixels."),
    "steps": _count("More steps, finer and slower."),
    "guidance": _number("How strictly the prompt is followed; 1 is off."),
    "cache_interval": _count("Ask the deep layers at every n-th evaluation alone: sooner, a little different.", "--cache-interval"),
    "sampler": _word("The solver, for example ddim or dpmpp_2m."),
    "schedule": _word("The noise levels, for example karras."),
    "seed": _count("The same seed draws the same picture."),
    "num_images": _count("How many pictures.", "--num-images", "-n"),
    "model": _word("Which of the service's models."),
    "output_format": _word("png, jpeg or webp. \\[the output's suffix, else png]", "--format"),
    "output_quality": _count("Of jpeg and webp, up to 100.", "--quality"),
    "clip_skip": _count("The text encoder's layer that is read: 1 the last, 2 the one before.", "--clip-skip", panel=NETWORKS),
    "image": _file("The picture to begin with: PNG, JPEG or WebP."),
    "mask": _file("Of the same size: what is white is drawn anew."),
    "kind": _word("Such as variations, or inpaint by an image's own transparency. \\[what follows from the others]", panel=PICTURES),
    "mask_padding": _count("Draw the masked region alone, with so many pixels around it.", "--mask-padding", panel=PICTURES),
    "mask_feather": _count("Pixels of soft edge around the mask.", "--mask-feather", panel=PICTURES),
    "mask_content": _word("What the masked part begins as: original or fill.", "--mask-content", panel=PICTURES),
    "strength": _number("How much of the picture is drawn anew, up to 1.", panel=PICTURES),
    "start": _number("Begin after this share of the steps, instead of strength.", panel=PICTURES),
    "end": _number("End after this share of the steps.", panel=PICTURES),
}
TO_BE_READ: Mapping[str, Any] = {  # by `generate_fields`
    "sampler_option": SamplerOption,
    "schedule_option": ScheduleOption,
    "guidance_option": _many("Such as variant=apg or end=0.8", "--guidance-option"),
    "outpaint": _word("Pixels to draw beyond each side: LEFT,TOP,RIGHT,BOTTOM.", panel=PICTURES),
    "upscale": _number("So many times larger: by the model's own network, or in a second pass.", panel=PICTURES),
    "upscale_option": _many("Such as method=latent, steps=10 or strength=0.5", "--upscale-option", panel=PICTURES),
    "lora": _many("NAME or NAME:WEIGHT, by the names of GET /models", "--lora", panel=NETWORKS),
    "embedding": _many("A name that stands in the prompt for its vectors", "--embedding", panel=NETWORKS),
    "control": _word("A ControlNet and what it is shown: NAME=FILE.", panel=NETWORKS),
    "control_option": _many("Such as scale=0.5 or end=0.8", "--control-option", panel=NETWORKS),
    "set_": _many("A field of POST /generate, its value in JSON or a word, such as priority=5", "--set", panel=FURTHER),
}
MANY = frozenset(name for name in TO_BE_READ if name.endswith("_option")) | {"lora", "embedding", "set_"}


def with_options(command: Command) -> Command:
    """The command of a prompt, an output and keywords, with all of these for typer to see."""
    kinds = {"prompt": Prompt, "output": Output, **AS_THEY_ARE, **TO_BE_READ}
    defaults = {"prompt": inspect.Parameter.empty, "output": ""} | {name: [] for name in MANY}
    seen = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(n), annotation=kind) for n, kind in kinds.items()]
    command.__annotations__ = dict(kinds)
    command.__signature__ = inspect.Signature(seen)  # type: ignore[attr-defined]
    return command

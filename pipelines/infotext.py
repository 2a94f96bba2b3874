"""The line of parameters that A1111's tools read from a picture, written and read. Standard library only."""

from __future__ import annotations

import re

from pipelines.name_tables import A1111_SCHEDULES
from pipelines.params import GenerationParams

PARAMETER = re.compile(r'\s*([\w ]+?):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def infotext(params: GenerationParams, seed: int, sampler: str, model_hash: str, version: str) -> str:
    """Prompt, negative prompt if there is one, and the parameters; `sampler` is its name for people."""
    more = "" if changed(params) is None else f"Denoising strength: {changed(params):g}, "
    if hires := params.upscale:
        steps = f"Hires steps: {hires['steps']}, " if "steps" in hires else ""
        more += f"Hires resize: {hires['width']}x{hires['height']}, {steps}Hires upscaler: {hires['method'].title()}, "
    more += f"Clip skip: {params.clip_skip}, " if params.clip_skip > 1 else ""
    more += f"Cache interval: {params.cache_interval}, " if params.cache_interval > 1 else ""
    negative = f"\nNegative prompt: {params.negative_prompt}" if params.negative_prompt else ""
    return (
        f"{params.prompt}{negative}\nSteps: {params.steps}, Sampler: {sampler}, Schedule type: {schedule_label(params.schedule)}, "
        f"CFG scale: {params.guidance:g}, Seed: {seed}, Size: {params.width}x{params.height}, {more}"
        f"Model hash: {model_hash}, Model: {params.model}, Version: celadon {version}"
    )


def schedule_label(schedule: str) -> str:
    """What A1111's lists call it, since its page looks for that when it reads a picture; the id of one that it does not have."""
    return next((name.name for name in A1111_SCHEDULES if name.id == schedule and not name.refused), schedule)


def changed(params: GenerationParams) -> float | None:
    """What A1111 calls denoising strength: that of the second pass, or of the picture that is drawn upon; None where there is neither."""
    if "strength" in params.upscale:
        return float(params.upscale["strength"])
    return params.strength if params.image else None


def parse(text: str) -> dict[str, str]:
    """The same taken apart, by A1111's names; empty where there are no parameters."""
    *lines, last = text.strip().split("\n")
    found = {name: value.strip('"') for name, value in PARAMETER.findall(last)}
    if len(found) < 3:
        return {}
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    return {"Prompt": prompt, "Negative prompt": negative} | found

"""Which LoRAs a request may name: those that the model's workers hold, each once, within bounds."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.card import ModelCard
from pipelines.params import LoraUse
from pipelines.prompts import PromptError, Syntax, worn_in
from service.errors import BadRequest, InvalidValue, NotSupported, shown
from service.option_values import nearest

MAX_LORAS = 16  # of one picture
MAX_LORA_WEIGHT = 10.0


class UnknownLora(BadRequest):
    code = "unknown_lora"
    about = "The model's workers hold no such LoRA, or none that can be used; GET /models lists them."


def check_loras(prompt: str, negative_prompt: str, syntax: Syntax, given: Sequence[LoraUse], card: ModelCard) -> None:
    """Those of the request and those that its prompt names. Raises UnknownLora, InvalidValue, NotSupported."""
    named = _named(prompt, "prompt") if syntax == "a1111" else {}
    if syntax == "a1111" and _named(negative_prompt, "negative_prompt"):
        raise NotSupported("A LoRA acts on the whole picture: name it in the prompt.", param="negative_prompt")
    asked = dict(named)
    for lora in given:
        if asked.setdefault(lora.name, lora.weight) != lora.weight or sum(other.name == lora.name for other in given) > 1:
            raise InvalidValue(f"The LoRA {shown(lora.name)!r} is named twice.", param="loras")
    if len(asked) > MAX_LORAS:
        raise InvalidValue(f"At most {MAX_LORAS} LoRAs act on a picture.", param="loras")
    known = {info.name: info.refused for info in card.loras}
    for name, weight in asked.items():
        param = "prompt" if name in named else "loras"
        if name not in known:
            raise UnknownLora(f"There is no LoRA {shown(name)!r}.{nearest(name, (n for n, why in known.items() if not why))}", param=param)
        if known[name]:
            raise UnknownLora(f"The LoRA {shown(name)!r} cannot be used: {known[name]}.", param=param)
        if not -MAX_LORA_WEIGHT <= weight <= MAX_LORA_WEIGHT:
            raise InvalidValue(f"A LoRA's weight must be from -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}.", param=param)


def _named(text: str, param: str) -> dict[str, float]:
    try:
        return dict(worn_in(text)[0])
    except PromptError as error:
        raise InvalidValue(f"{param} cannot be read: {error}.", param=param) from error


def used_hashes(prompt_worn: Sequence[tuple[str, float]], card: ModelCard) -> list[str]:
    """Of the files that act on a picture: another file under the same name draws another one."""
    hashes = {info.name: info.hash for info in card.loras}
    return [hashes.get(name, "") for name, _ in prompt_worn]

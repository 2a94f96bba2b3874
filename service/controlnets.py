"""Which ControlNet a request may name, with the picture that it is shown, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.card import ModelCard
from pipelines.params import Kind, controlled_steps
from service.errors import BadRequest, InvalidValue, MissingField, NotSupported, shown
from service.inputs import Given
from service.option_values import nearest

if TYPE_CHECKING:
    from service.drafts import Draft

MAX_SCALE = 10.0


class UnknownControlNet(BadRequest):
    code = "unknown_controlnet"
    about = "The model's workers hold no such ControlNet, or none that can be used; GET /models lists them."


def controlled(draft: Draft, kind: Kind, card: ModelCard, given: Given | None, taken: int) -> dict[str, Any]:
    """Name, image, scale, start and end; empty where there is none. `taken` is how many steps are.

    Raises UnknownControlNet, MissingField, InvalidValue, NotSupported.
    """
    said = draft.controlnet
    if not said:
        return {}
    known = {info.name: info.refused for info in card.controlnets}
    if (name := said.get("name", "")) not in known:
        held = nearest(name, (n for n, why in known.items() if not why))
        raise UnknownControlNet(f"There is no ControlNet {shown(name)!r}.{held}", param="controlnet.name")
    if known[name]:
        raise UnknownControlNet(f"The ControlNet {shown(name)!r} cannot be used: {known[name]}.", param="controlnet.name")
    if given is None:
        raise MissingField("A ControlNet is shown a picture: send its image.", param="controlnet.image")
    if draft.mask_padding is not None or kind == "outpaint":
        raise NotSupported("A ControlNet is shown the whole picture: leave mask_padding and outpaint out.", param="controlnet")
    if draft.cache_interval != 1:
        raise NotSupported("A ControlNet goes with cache_interval 1 alone.", param="cache_interval")
    scale, start, end = (said.get(field, usual) for field, usual in (("scale", 1.0), ("start", 0.0), ("end", 1.0)))
    if not 0 <= scale <= MAX_SCALE:
        raise InvalidValue(f"controlnet.scale must be from 0 to {MAX_SCALE:g}.", param="controlnet.scale")
    if not 0 <= start < end <= 1:
        raise InvalidValue("controlnet.start must be less than controlnet.end, both from 0 to 1.", param="controlnet.start")
    if not controlled_steps(taken, start, end):
        raise InvalidValue(f"None of the {taken} steps lies wholly between start and end.", param="controlnet.start")
    return {"name": name, "image": given.key, "scale": float(scale), "start": float(start), "end": float(end)}


def net_hash(name: str, card: ModelCard) -> str:
    """Of its files: others under the same name draw another picture."""
    return next((info.hash for info in card.controlnets if info.name == name), "")

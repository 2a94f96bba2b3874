"""Which kind of job a draft is, and what only jobs with a picture say: checked against the picture, the model and the sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.job import JobWarning
from pipelines.card import ModelCard, SamplerInfo
from pipelines.params import GenerationParams, Kind, kept_steps
from service.errors import InvalidSize, InvalidValue, MissingField
from service.inputs import Given, Pictures
from service.picture_errors import KindNotSupported

if TYPE_CHECKING:
    from service.drafts import Draft

STRENGTH = {"image_to_image": 0.8, "variations": 0.6}  # if none is asked for: the first as in diffusers; of others 1
FEATHER = 8  # pixels: of most VAEs one latent cell
MAX_FEATHER = 128
SEAM = 16  # of outpainting, likewise, and as wide as what is drawn anew of the picture
MAX_SIDE = 4096
MAX_PADDING = 1024
NEEDS_IMAGE = ("mask", "outpaint", "strength", "start", "end", "mask_feather", "mask_padding", "mask_content")


def kind_of(draft: Draft, card: ModelCard, given: Pictures) -> Kind:
    """What it says, or what follows from its pictures. Raises MissingField, InvalidValue, KindNotSupported."""
    follows: Kind = "image_to_image" if given.image else "text_to_image"
    follows = "inpaint" if given.mask else "outpaint" if given.image and draft.outpaint else follows
    kind = draft.kind or follows
    if kind != "text_to_image" and not given.image:
        raise MissingField(f"{kind} begins with a picture: send image.", param="image")
    if kind == "text_to_image" and given.image:
        raise InvalidValue("text_to_image begins with no picture; leave kind out, or name another.", param="kind")
    if given.mask and (kind != "inpaint" or draft.outpaint):
        raise InvalidValue("A mask goes with inpaint alone; leave kind and outpaint out.", param="mask")
    if bool(draft.outpaint) != (kind == "outpaint") and given.image:
        raise InvalidValue("outpaint says how many pixels are drawn beyond which side; it goes with the kind outpaint.", param="outpaint")
    if kind == "inpaint" and not (given.mask or (given.image and given.image.head.transparent)):
        raise MissingField("inpaint needs a mask, or an image with transparent parts.", param="mask")
    if kind not in card.kinds:
        raise KindNotSupported(f"{card.id} cannot do {kind}; it does {', '.join(card.kinds)}.", param="kind")
    return kind


def of_picture(draft: Draft, card: ModelCard, sampler: SamplerInfo, steps: int, given: Pictures) -> dict[str, Any]:
    """The fields of GenerationParams that say what is drawn from. Raises what `kind_of` raises, InvalidSize."""
    kind = kind_of(draft, card, given)
    if not given.image:
        _nothing_said(draft)
        return {"kind": kind}
    if given.mask and given.mask.size != given.image.size:
        has, wants = ("x".join(map(str, size)) for size in (given.mask.size, given.image.size))
        raise InvalidSize(f"The mask has {has} pixels and the image {wants}; they must be equal.", param="mask")
    mask = given.mask or (given.image if kind == "inpaint" else None)
    return {
        "kind": kind,
        "image": given.image.key,
        "mask": mask.key if mask else "",
        "mask_feather": _feather(draft, kind),
        **_masked_part(draft, kind),
        "outpaint": dict(draft.outpaint or {}),
        **_part(draft, kind, sampler, steps),
    }


def size_of(draft: Draft, given: Given | None) -> tuple[int | None, int | None]:
    """Width and height as the client said, or those of its picture; those of the model where a region of it is drawn."""
    region = draft.mask_padding is not None and not draft.outpaint
    if region or given is None or (draft.width is not None and draft.height is not None):
        if given and draft.outpaint and (draft.width, draft.height) != grown(given, draft.outpaint):
            raise InvalidSize("outpaint does not resize: leave width and height out, or give those of the whole.", param="width")
        return draft.width, draft.height
    width, height = grown(given, draft.outpaint)
    if draft.width is None and draft.height is None:
        return width, height
    raise InvalidValue("Give both width and height, or neither: then the picture's own are taken.", param="width")


def grown(given: Given, sides: Mapping[str, int] | None) -> tuple[int, int]:
    """Width and height of a picture with what is drawn beyond its sides."""
    more = sides or {}
    return given.size[0] + more.get("left", 0) + more.get("right", 0), given.size[1] + more.get("top", 0) + more.get("bottom", 0)


def kind_warnings(params: GenerationParams) -> Iterator[JobWarning]:
    if params.mask_content != "original" and params.kept[0] == 0:
        yield JobWarning("mask_content_unused", "With strength 1 the masked part begins as noise, whatever mask_content says.")
    if params.kind not in ("text_to_image", "variations") and not params.prompt:
        yield JobWarning("prompt_empty", "Without a prompt the model draws anything into the picture.")


def transparency_warning(params: GenerationParams, given: Pictures) -> Iterator[JobWarning]:
    if given.image and given.image.head.transparent and params.mask != params.image:
        yield JobWarning(
            "transparency_flattened",
            "The transparent parts of image are laid on white. To have them drawn anew, send kind inpaint and no mask.",
        )


def _nothing_said(draft: Draft) -> None:
    """What a text-to-image job has anyway may be said: answers of this service hold it."""
    plain = {
        "mask": None,
        "outpaint": None,
        "strength": 1.0,
        "start": 0.0,
        "end": 1.0,
        "mask_feather": 0,
        "mask_padding": None,
        "mask_content": "original",
    }
    for name in NEEDS_IMAGE:
        if getattr(draft, name) not in (None, plain[name]):
            raise InvalidValue(f"{name} means nothing without an image.", param=name)


def _feather(draft: Draft, kind: Kind) -> int:
    if kind not in ("inpaint", "outpaint"):
        if draft.mask_feather:
            raise InvalidValue("mask_feather means nothing without a mask.", param="mask_feather")
        return 0
    usual = SEAM if kind == "outpaint" else FEATHER
    feather = usual if draft.mask_feather is None else draft.mask_feather
    if not 0 <= feather <= MAX_FEATHER:
        raise InvalidValue(f"mask_feather must be from 0 to {MAX_FEATHER}.", param="mask_feather")
    return feather


def _masked_part(draft: Draft, kind: Kind) -> dict[str, Any]:
    content, padding = draft.mask_content or "original", draft.mask_padding
    for name, said in (("mask_padding", padding is not None), ("mask_content", content != "original")):
        if said and kind != "inpaint":
            raise InvalidValue(f"{name} goes with a mask, for inpaint.", param=name)
    if padding is not None and not 0 <= padding <= MAX_PADDING:
        raise InvalidValue(f"mask_padding must be from 0 to {MAX_PADDING}.", param="mask_padding")
    return {"mask_padding": padding, "mask_content": content}


def _part(draft: Draft, kind: Kind, sampler: SamplerInfo, steps: int) -> dict[str, float]:
    start, end = draft.start or 0.0, 1.0 if draft.end is None else draft.end
    usual = 1.0 if start else STRENGTH.get(kind, 1.0)
    strength = usual if draft.strength is None else draft.strength
    if not 0.0 < strength <= 1.0:
        raise InvalidValue("strength must be above 0, and at most 1.", param="strength")
    if kind in ("inpaint", "outpaint") and end < 1.0:
        raise InvalidValue(f"{kind} goes to the last step: what it keeps is clean.", param="end")
    try:
        first, last = kept_steps(steps, strength=strength, start=start, end=end)
    except ValueError as error:
        param = "strength" if draft.strength is not None else "start" if draft.start is not None else "end"
        raise InvalidValue(f"{error}.".capitalize(), param=param) from error
    if sampler.only_steps and (first, last) != (0, steps):
        raise InvalidValue(f"{sampler.id} was learned for all of its steps; it takes strength 1 only.", param="strength")
    return {"strength": strength, "start": start, "end": end}

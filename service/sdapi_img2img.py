"""The body of A1111's img2img as data: what is honoured of it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, Field

from pipelines.card import ModelCard
from pipelines.params import MaskContent
from service.data_url import decoded, from_base64, is_data_url
from service.drafts import Draft
from service.errors import InvalidValue, MissingField, NotSupported
from service.kinds import MAX_PADDING
from service.picture_head import head
from service.sdapi import Txt2ImgRequest, say_the_rest

# Fields of pictures that are honoured at these values only. Left out or null, they ask for nothing.
ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "resize_mode": ((0,), "pictures are resized to width and height, and not cut or filled up"),
    "inpainting_mask_invert": ((0, False), "send the mask the other way round"),
    "initial_noise_multiplier": ((1,), "there is one amount of noise"),
    "include_init_images": ((False,), "your own pictures are not sent back"),
    "latent_mask": ((), "send mask"),
    "mask_round": ((True,), "masks are binary for the model"),
}
OF_MASKS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "inpainting_fill": ((0, 1), "the masked part begins as a blur of what surrounds it (0, fill) or as the picture (1, original)"),
}
CONTENT: Mapping[int, MaskContent] = {0: "fill", 1: "original"}
MOOT = frozenset({"image_cfg_scale"})  # of models that are not here
MAX_BLUR = 64
GREEN = (  # a PNG, 64 by 64
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAT0lEQVR42u3PQQkAAAgEsOtkJytY3wi+hcEKLDX9WgQEBAQEBAQEBAQEBAQEBA"
    "QEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQELgsJWwEAO1U7cgAAAABJRU5ErkJggg=="
)


def _say_the_rest(schema: dict[str, Any]) -> None:
    """To the document: fields that are taken at some values only, and that there are no others; and that a picture must be there."""
    say_the_rest(schema)
    schema["properties"] |= {name: {"enum": [None, *good]} for name, (good, _) in ONLY.items()} | {name: {} for name in sorted(MOOT)}
    pictures = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
    schema["properties"]["init_images"] = {**pictures, "description": "one picture, base64 or a data URL"}
    schema["required"] = ["init_images"]
    schema["examples"] = [{"prompt": "a red apple", "init_images": [GREEN], "steps": 20, "width": 64, "height": 64}]


class Img2ImgRequest(Txt2ImgRequest):
    """Body of img2img. null is legal everywhere; what asks for something that is not done here is refused."""

    model_config = ConfigDict(json_schema_extra=_say_the_rest)

    init_images: list[str] | None = Field(default=None, description="one picture, base64 or a data URL")
    denoising_strength: float | None = Field(default=0.75, description="share of the steps that is taken: above 0, at most 1")
    mask: str | None = Field(default=None, description="base64 or a data URL; white is drawn anew")
    mask_blur: int | None = Field(default=4, ge=0, le=MAX_BLUR, description="deviation of the soft edge, in pixels")
    inpainting_fill: int | None = Field(default=0, description="what the masked part begins as: 0 a blur of the rest, 1 the picture")
    inpaint_full_res: bool | None = Field(default=True, description="with a mask: draw its region alone, at width and height")
    inpaint_full_res_padding: int | None = Field(default=0, ge=0, le=MAX_PADDING, description="and so many pixels around it")

    def checked(self) -> None:
        """Raises NotSupported, UnknownField for a field that cannot be honoured."""
        if self.enable_hr:
            raise NotSupported("enable_hr belongs to txt2img.", param="enable_hr")
        refused = {**ONLY, **(OF_MASKS if self.mask else {})}
        for name, (good, why) in refused.items():
            value = getattr(self, name, None)
            if value is not None and value not in good:
                raise NotSupported(f"{name} of {str(value)[:20]} is not done here: {why}.", param=name)
        known = {*ONLY, *OF_MASKS, *MOOT}
        self._rest_checked({name: value for name, value in (self.model_extra or {}).items() if name not in known})

    def to_draft(self, card: ModelCard) -> Draft:
        """Raises UnknownName of `pipelines.names`, MissingField, InvalidValue, InvalidPicture, NotSupported."""
        if not self.init_images:
            raise MissingField("img2img begins with a picture: send init_images.", param="init_images")
        if len(self.init_images) > 1:
            raise NotSupported("One picture is taken; ask again for the others.", param="init_images")
        mask = _decoded("mask", self.mask) if self.mask else None
        if mask and _transparent(mask):
            raise NotSupported("A mask has no transparency here; send black and white.", param="mask")
        strength = 0.75 if self.denoising_strength is None else self.denoising_strength
        if not 0 < strength <= 1:
            raise InvalidValue("denoising_strength must be above 0, and at most 1.", param="denoising_strength")
        return replace(
            super().to_draft(card),
            kind="inpaint" if mask else "image_to_image",
            image=_decoded("init_images", self.init_images[0]),
            mask=mask,
            strength=strength,
            **(self._of_mask() if mask else {}),
        )

    def _of_mask(self) -> dict[str, Any]:
        alone = self.inpaint_full_res is None or self.inpaint_full_res
        return {
            "mask_feather": 2 * (4 if self.mask_blur is None else self.mask_blur),
            "mask_padding": (self.inpaint_full_res_padding or 0) if alone else None,
            "mask_content": CONTENT[self.inpainting_fill or 0],
        }

    def echo(self) -> dict[str, Any]:
        """The request as the answer repeats it: without pictures, as there."""
        return self.model_dump(by_alias=True) | {"init_images": None, "mask": None}


def _decoded(param: str, text: str) -> bytes:
    """Clients send bare base64 as often as a data URL. Raises InvalidPicture."""
    return decoded(param, text) if is_data_url(text) else from_base64(param, text)


def _transparent(data: bytes) -> bool:
    """What is no picture is refused with the others."""
    try:
        return head(data).transparent
    except ValueError:
        return False

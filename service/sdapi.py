"""The dialect of A1111's /sdapi/v1 as data: its request to a Draft, a finished job to its answer. Facts: docs/a1111.md."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.job import Job
from pipelines.card import ModelCard
from pipelines.infotext import changed, infotext, schedule_label
from pipelines.name_tables import A1111_SAMPLERS
from pipelines.names import a1111
from service.drafts import Draft
from service.errors import InvalidValue, NotSupported, UnknownField, shown
from service.sdapi_hires import SAME, second_pass

# Fields that are honoured only where they ask for nothing, and what asks for nothing besides null.
NOTHING: Mapping[str, tuple[Any, ...]] = {
    "styles": ([],), "subseed": (-1,), "subseed_strength": (0,), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1),
    "restore_faces": (False,), "tiling": (False,), "firstphase_width": (0,), "firstphase_height": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"), "hr_prompt": ("",), "hr_negative_prompt": ("",), "script_name": ("", "None"),
    "script_args": ([],), "alwayson_scripts": ({},), "refiner_checkpoint": ("", "None"), "refiner_switch_at": (0, 1), "infotext": ("",),
    "comments": ({},),
}  # fmt: skip
# Fields that matter only together with one of those, or with a second pass, or not at all where every picture is kept by the service.
MOOT = frozenset({
    *SAME, "do_not_save_samples", "do_not_save_grid", "save_images", "override_settings_restore_afterwards", "disable_extra_networks",
    "force_task_id",
})  # fmt: skip
SETTINGS = frozenset({"sd_model_checkpoint", "samples_format", "CLIP_stop_at_last_layers"})
OF_SAMPLER = {"eta": "eta", "s_churn": "s_churn", "s_tmin": "s_tmin", "s_tmax": "s_tmax", "s_noise": "s_noise"}


def say_the_rest(schema: dict[str, Any]) -> None:
    """To the document: the fields that are taken where they ask for nothing, and that there are no others."""
    taken = {name: {"enum": [None, *nothing]} for name, nothing in NOTHING.items()} | {name: {} for name in sorted(MOOT)}
    schema["properties"] |= {name: said for name, said in taken.items() if name not in schema["properties"]}
    schema["additionalProperties"] = False
    schema["examples"] = [{"prompt": "a red apple", "steps": 20, "width": 64, "height": 64}]


class Txt2ImgRequest(BaseModel):
    """Body of txt2img. null is legal everywhere; what asks for something that is not done here is refused."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=say_the_rest)

    prompt: str | None = ""
    negative_prompt: str | None = ""
    sampler_name: str | None = Field(default=None, description="A1111's label; Euler if left out, as there")
    sampler_index: str | None = Field(default=None, description="older name of it")
    schedule_label: str | None = Field(default=None, alias="scheduler", description="A1111's label; automatic is its rule")
    steps: int | None = 50
    cfg_scale: float | None = 7.0
    width: int | None = 512
    height: int | None = 512
    batch_size: int | None = Field(default=1, ge=1)
    n_iter: int | None = Field(default=1, ge=1, description="pictures: so many times batch_size")
    seed: int | None = -1
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    enable_hr: bool | None = Field(default=False, description="draw in two passes, as hr_... say")
    denoising_strength: float | None = Field(default=None, description="of the second pass, 0.7 if left out; nothing without one")
    hr_scale: float | None = Field(default=2.0, description="how many times larger")
    hr_upscaler: str | None = Field(default=None, description="Latent (if left out), Lanczos or Superres")
    hr_second_pass_steps: int | None = Field(default=0, ge=0, description="0: as many as before")
    hr_resize_x: int | None = Field(default=0, ge=0, description="pixels of the result, instead of hr_scale")
    hr_resize_y: int | None = Field(default=0, ge=0)
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, said: Any) -> Any:
        """There every field may be null; a few of them break it then, and here all stand for their defaults."""
        own = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in said.items() if value is not None or name not in own} if isinstance(said, dict) else said

    def checked(self) -> None:
        """Raises NotSupported, UnknownField for a field that cannot be honoured."""
        self._rest_checked(self.model_extra or {})

    def _rest_checked(self, rest: Mapping[str, Any]) -> None:
        """Fields without a meaning of their own here, and the settings."""
        for name, value in rest.items():
            if name in NOTHING and value is not None and value not in NOTHING[name]:
                raise NotSupported(f"{name} is not done here; leave it out, or send what asks for nothing.", param=name)
            if name not in NOTHING and name not in MOOT:
                raise UnknownField(f"There is no field {shown(name)!r}.", param=name)
        for name in self.override_settings or {}:
            if name not in SETTINGS:
                raise NotSupported(f"The setting {shown(name)!r} cannot be overridden here.", param="override_settings")

    @property
    def model(self) -> str | None:
        """The id in `override_settings`: A1111 appends a hash, as in `name [0123abcd]`."""
        told = (self.override_settings or {}).get("sd_model_checkpoint")
        return str(told).partition(" [")[0] if told else None

    def to_draft(self, card: ModelCard) -> Draft:
        """Raises UnknownName of `pipelines.names`, InvalidValue."""
        choice = a1111(self.sampler_name or self.sampler_index or "Euler", self.schedule_label)
        sampler = card.sampler(choice.sampler)
        takes = sampler.options if sampler else {}
        told = {
            option: getattr(self, field) for field, option in OF_SAMPLER.items() if getattr(self, field) is not None and option in takes
        }
        if told.get("s_tmax") == 0:
            del told["s_tmax"]  # there, no end
        samples = str((self.override_settings or {}).get("samples_format") or "png").lower().replace("jpg", "jpeg")
        if samples not in ("png", "jpeg", "webp"):
            raise InvalidValue("samples_format must be png, jpg or webp.", param="override_settings")
        return Draft(
            prompt=self.prompt or "",
            negative_prompt=self.negative_prompt or "",
            prompt_syntax="a1111",
            clip_skip=self._clip_skip(),
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance=self.cfg_scale,
            sampler=choice.sampler,
            sampler_options={**choice.sampler_options, **told},
            schedule=choice.schedule,
            schedule_options=choice.schedule_options,
            seed=None if self.seed in (None, -1) else self.seed,
            num_images=(self.batch_size or 1) * (self.n_iter or 1),
            model=card.id,
            output_format=samples,  # type: ignore[arg-type]
            preview=True,
            upscale=second_pass(self) if self.enable_hr else {},
        )

    def _clip_skip(self) -> int:
        skip = (self.override_settings or {}).get("CLIP_stop_at_last_layers")
        if skip is not None and (not isinstance(skip, int) or isinstance(skip, bool)):
            raise InvalidValue("CLIP_stop_at_last_layers must be a whole number.", param="override_settings")
        return 1 if skip is None else skip

    def echo(self) -> dict[str, Any]:
        """The request as the answer repeats it."""
        return self.model_dump(by_alias=True)


def label(sampler: str) -> str:
    """What A1111 calls it, or its id."""
    return next((name.name for name in A1111_SAMPLERS if name.id == sampler), sampler)


def title(card: ModelCard) -> str:
    return f"{card.id} [{card.hash[:10]}]"


def info(job: Job, card: ModelCard, version: str) -> str:
    """A JSON string, as there."""
    params, seeds = job.params, [image.seed for image in job.images]
    count, name = len(seeds), label(params.sampler)
    told = {
        "prompt": params.prompt, "all_prompts": [params.prompt] * count, "negative_prompt": params.negative_prompt,
        "all_negative_prompts": [params.negative_prompt] * count, "seed": params.seed, "all_seeds": seeds, "subseed": params.seed,
        "all_subseeds": seeds, "subseed_strength": 0, "width": params.width, "height": params.height, "sampler_name": name,
        "cfg_scale": params.guidance, "steps": params.steps, "batch_size": count, "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": card.id, "sd_model_hash": card.hash[:10], "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1,
        "seed_resize_from_h": -1, "denoising_strength": changed(params),
        "extra_generation_params": {"Schedule type": schedule_label(params.schedule)},
        "index_of_first_image": 0, "infotexts": [infotext(params, seed, name, card.hash[:10], version) for seed in seeds],
        "styles": [], "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created_at)), "clip_skip": params.clip_skip,
        "is_using_inpainting_conditioning": False, "version": f"celadon {version}", "job_id": job.id,
        "warnings": [warning.message for warning in job.warnings],
    }  # fmt: skip
    return json.dumps(told)


def progress(jobs: list[Job], preview: str | None, eta_s: float) -> dict[str, Any]:
    """Of the caller's jobs that wait or run, the oldest first. Idle is 0 with no jobs."""
    done, total = sum(job.steps_done for job in jobs), sum(job.steps_total for job in jobs)
    now = jobs[0] if jobs else None
    each = now.steps_total // now.params.num_images if now else 0
    state = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": now.id if now else "", "job_count": len(jobs),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(now.created_at)) if now else "0", "job_no": 0,
        "sampling_step": now.steps_done % each if now and each else 0, "sampling_steps": each,
    }  # fmt: skip
    image = preview.partition(",")[2] if preview else None
    return {
        "progress": done / total if total else 0.0, "eta_relative": eta_s, "state": state, "current_image": image, "textinfo": None,
        "current_task": now.id if now else None,
    }  # fmt: skip

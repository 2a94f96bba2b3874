"""Text (and a picture) to image: the stages around the U-Net, and the slow obvious loop that is the engine's oracle."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from pipelines import outermost, plain_guidance
from pipelines.conditioning import Text, vector
from pipelines.controls import Control, shown
from pipelines.denoiser_torch import told_unet
from pipelines.embeddings_torch import spoken
from pipelines.known import Known, Pixels, Posterior, begin
from pipelines.lanes import Here, Lane
from pipelines.loading import Checkpoint
from pipelines.noise import NormalStream
from pipelines.params import GenerationParams
from pipelines.planning import Decoding, WhenAsked, from_pixels, negative_of, plan_for, table_for, to_pixels
from pipelines.prediction import MEASURED
from pipelines.prompt_chunks import Marks, chunks, one_chunk, weighted
from pipelines.prompts import PLAIN, Reading, read
from pipelines.step_table import MEMORIES
from pipelines.tokens import COMMA

Array = Any


@torch.inference_mode()
def encode_text(checkpoint: Checkpoint, prompt: str | None, reading: Reading = PLAIN) -> Text:
    """What the text encoders say of one prompt, in float32 on the model's device: states [L, E]; zeros of None. Longer prompts are cut at
    L - 2 tokens, or in A1111's syntax continued in further chunks: [n L, E].

    One prompt a call: the result must not depend on which prompts came along.
    """
    second = checkpoint.second
    encoders: dict[str, tuple[CLIPTokenizer, Any]] = {"text_encoder": (checkpoint.tokenizer, checkpoint.text_encoder)}
    encoders |= {"text_encoder_2": (second.tokenizer, second.text_encoder)} if second else {}
    said = []
    for part, encoder in encoders.items():
        with checkpoint.wardrobe.wearing(part, reading.loras):
            said.append(_said(checkpoint, part, *encoder, prompt or "", reading))
    states, pooled = torch.cat([s for s, _ in said], dim=-1), said[-1][1]
    if prompt is None:
        states, pooled = torch.zeros_like(states), None if pooled is None else torch.zeros_like(pooled)
    return Text(states, None if pooled is None else pooled.cpu().numpy())


def encode_prompt(checkpoint: Checkpoint, prompt: str, reading: Reading = PLAIN) -> torch.Tensor:
    """The states alone."""
    states: torch.Tensor = encode_text(checkpoint, prompt, reading).states
    return states


def _said(
    checkpoint: Checkpoint, part: str, tokenizer: CLIPTokenizer, encoder: Any, prompt: str, reading: Reading
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What one encoder says: states [n L, E], and pooled [P] of the first chunk where it pools."""
    marks = Marks(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, _comma(tokenizer), tokenizer.model_max_length)
    learned = checkpoint.embeddings.learned(part, reading.embeddings, encoder.get_input_embeddings().num_embeddings)
    units = learned.units(lambda text: tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    told = [one_chunk(units(prompt), marks)] if reading.syntax == "plain" else chunks(read(prompt), units, marks)
    said = []
    for chunk in told:
        mask = [int(i <= chunk.ids.index(marks.end)) for i in range(marks.length)]
        with spoken(encoder, learned.given(chunk.ids)):
            said.append(_states(checkpoint, encoder, learned.known(chunk.ids, marks.start), mask, reading.clip_skip))
    states = [weighted(s, torch.tensor(c.weights, device=s.device)) for (s, _), c in zip(said, told, strict=True)]
    return torch.cat(states), said[0][1]


def _states(
    checkpoint: Checkpoint, encoder: Any, ids: list[int], mask: list[int], clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States [L, E] of L ids, and pooled [P]; few encoders look at the mask. SDXL counts layers from the last but one, and takes their
    states as they are; those of others go through the last norm.
    """
    on_device = [torch.tensor([numbers], device=checkpoint.device) for numbers in (ids, mask)]
    masked = getattr(encoder.config, "use_attention_mask", False)
    xl = checkpoint.second is not None
    said = encoder(on_device[0], attention_mask=on_device[1] if masked else None, output_hidden_states=xl or clip_skip > 1)
    if xl:
        states = said.hidden_states[-clip_skip - 1]
    elif clip_skip > 1:
        states = getattr(encoder, "text_model", encoder).final_layer_norm(said.hidden_states[-clip_skip])
    else:
        states = said[0]
    pooled = said.get("text_embeds")
    return states[0].float(), None if pooled is None else pooled[0].float()


def _comma(tokenizer: CLIPTokenizer) -> int | None:
    found: int | None = tokenizer.get_vocab().get(COMMA)
    return found


def prompt_tokens(checkpoint: Checkpoint, prompt: str, reading: Reading = PLAIN) -> int:
    """How many tokens the prompt has, vectors of embeddings among them."""
    learned = checkpoint.embeddings.learned("text_encoder", reading.embeddings, 0)
    pieces = learned.units(lambda text: checkpoint.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    return sum(map(len, pieces(prompt)))


@torch.inference_mode()
def decode(checkpoint: Checkpoint, latents: Array, *, exact: bool = False) -> Pixels:
    """Latents [C, h, w] -> picture [H, W, 3]. One picture a call, for the same reason. `exact` decodes in float32 whatever the VAE's is.

    Raises FloatingPointError where the VAE overflows.
    """
    vae, dtype = checkpoint.vae, checkpoint.vae.dtype
    if exact:
        vae.to(torch.float32)
    try:
        image = _image(checkpoint, torch.as_tensor(latents, device=checkpoint.device))
    finally:
        if exact:
            vae.to(dtype)  # halves that became singles are the same halves again
    return to_pixels(image.cpu().numpy())


def _image(checkpoint: Checkpoint, latents: torch.Tensor) -> torch.Tensor:
    """[3, H, W] in [-1, 1]"""
    vae = checkpoint.vae
    z = latents.to(vae.dtype)[None] / vae.config.scaling_factor
    image: torch.Tensor = vae.decode(z + (vae.config.shift_factor or 0), return_dict=False)[0][0].float()
    return image


class Begun:
    """A picture on a lane: as `decode`, but that the numbers become pixels on the device, and the host waits when it asks for them."""

    @torch.inference_mode()
    def __init__(self, checkpoint: Checkpoint, latents: Array, lane: Lane) -> None:
        given = torch.as_tensor(latents, device=checkpoint.device)
        with lane.at(given):
            image = _image(checkpoint, given)
            scaled = torch.round(torch.clamp(image / 2 + 0.5, 0, 1) * 255).to(torch.uint8)
            self._fetched = lane.fetch(scaled.permute(1, 2, 0).contiguous(), torch.isfinite(image).all())

    @property
    def ready(self) -> bool:
        return self._fetched.ready

    def pixels(self) -> Pixels:
        pixels, finite = self._fetched.arrays()
        if not finite:
            raise FloatingPointError("The VAE returned values that are not finite.")
        return pixels


@torch.inference_mode()
def encode_picture(checkpoint: Checkpoint, pixels: Pixels, mask: Pixels | None = None) -> Posterior:
    """Picture [H, W, 3], without what a mask [H, W] draws anew -> what the VAE's encoder says of its latents. One picture a call, for
    the same reason.
    """
    vae = checkpoint.vae
    x = torch.from_numpy(from_pixels(pixels, mask))[None].to(checkpoint.device, vae.dtype)
    said = vae.encode(x).latent_dist
    scale, shift = float(vae.config.scaling_factor), vae.config.shift_factor or 0
    mean, std = (array[0].float().cpu().numpy() for array in (said.mean, said.std))
    return Posterior((mean - np.float32(shift)) * np.float32(scale), std * np.float32(scale))


def denoise(
    checkpoint: Checkpoint, params: GenerationParams, index: int = 0, known: Known | None = None, control: Control | None = None
) -> NDArray[np.float32]:
    """Image `index` of a request, row by row, one coefficient after the other -> latents [C, h, w]."""
    table = table_for(checkpoint, params)
    guidance = plan_for(checkpoint, params, table)
    stream = NormalStream(params.image_seed(index))
    shape = checkpoint.latent_shape(params.width, params.height)
    prompts = params.prompt, negative_of(checkpoint, params)
    texts = [encode_text(checkpoint, prompt, params.reading) for prompt in prompts]
    cond, uncond = [(text, vector(checkpoint.told, params, text)) for text in texts]
    start = begin(known, table, stream, shape)
    blend, beside = start.blend, [] if start.beside is None else [torch.from_numpy(start.beside).to(checkpoint.device)]
    registers = {"x": start.x, "anchor": np.zeros(shape, np.float32)}
    registers |= {f"m{i}": np.zeros(shape, np.float32) for i in range(1, MEMORIES + 1)}
    average, cache = torch.zeros(shape, device=checkpoint.device), outermost.Cache(checkpoint.unet, params.cache_interval)
    for row in range(len(table)):
        c_in = table.c_in[row] if table.c_in[row] != MEASURED else 1.0 / registers["x"].std()
        x = torch.from_numpy(registers["x"]).to(checkpoint.device)
        seen, timestep, mark = torch.cat([x * float(c_in), *beside]), table.timestep[row], guidance.mark_at(row)
        ask = partial(_evaluate, checkpoint, seen, timestep, control=control if control is not None and control.rows[row] else None)
        with checkpoint.wardrobe.wearing("unet", params.worn):
            if params.cache_interval == 1:
                c, u = ask([cond, uncond] if guidance.guided(row) else [cond])
            else:
                c = cache.at(row, "cond", ask, [cond])[0]
                u = cache.at(row, "uncond", ask, [uncond])[0] if guidance.guided(row) else c
        with plain_guidance.disturbed(checkpoint.unet, mark), checkpoint.wardrobe.wearing("unet", params.worn):
            p = cache.at(row, "disturbed", ask, [cond, cond])[1] if mark else c
        c_skip, c_out = float(table.c_skip[row]), float(table.c_out[row])
        n = plain_guidance.numbers(guidance, row)
        delta = c_out * (c - u) + n["momentum"] * average
        average = delta if n["momentum"] else average
        raw = plain_guidance.guide(guidance.variants[row], n, c, u, p, delta, c_skip * x + c_out * c, c_out)
        denoised = c_skip * x + c_out * raw
        basis = registers | {
            "denoised": denoised.cpu().numpy(),
            "denoised_uncond": (c_skip * x + c_out * u if guidance.guided(row) else denoised).cpu().numpy(),
            "noise": stream.draw(shape) if table.noisy[row] else np.zeros(shape, np.float32),
        }
        registers = table.advance(row, basis)
        if blend:
            registers["x"] = blend.mask * registers["x"] + (1 - blend.mask) * blend.known_at(table, row)
    return registers["x"]


class TorchStages:
    """The stages of a checkpoint around its U-Net, as a worker asks for them; those of texts and of pictures on lanes of their own where
    there are some.
    """

    def __init__(self, checkpoint: Checkpoint, texts: Lane | None = None, pictures: Lane | None = None) -> None:
        self._checkpoint, self._texts, self._pictures = checkpoint, texts or Here(), pictures
        self.card, self.ladder = checkpoint.card, checkpoint.ladder
        self.latent_rgb, self.solvers = checkpoint.latent_rgb, checkpoint.solvers
        self.unet_channels = checkpoint.unet_channels
        self.told, self.zero_negative = checkpoint.told, checkpoint.zero_negative

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self._checkpoint.latent_shape(width, height)

    def tokens(self, prompt: str, reading: Reading = PLAIN) -> int:
        return prompt_tokens(self._checkpoint, prompt, reading)

    @torch.inference_mode()
    def encode(self, prompt: str | None, reading: Reading = PLAIN) -> Text:
        """Numpy on a CPU as the registers are."""
        with self._texts.at():
            text = encode_text(self._checkpoint, prompt, reading)
        states = self._texts.back(text.states)
        return Text(states.numpy() if self._checkpoint.device.type == "cpu" else states, text.pooled)

    def decode(self, latents: Array, *, exact: bool = False) -> Pixels:
        return decode(self._checkpoint, latents, exact=exact)

    def begin(self, latents: Array) -> Decoding:
        return Begun(self._checkpoint, latents, self._pictures) if self._pictures else WhenAsked(partial(self.decode, latents))

    def encode_picture(self, pixels: Pixels, mask: Pixels | None = None) -> Posterior:
        return encode_picture(self._checkpoint, pixels, mask)

    def enlarge(self, pixels: Pixels, seed: int) -> Pixels:
        assert self._checkpoint.upscaler is not None, "the card names no upscaler"
        return self._checkpoint.upscaler(pixels, seed)


def generate(checkpoint: Checkpoint, params: GenerationParams, index: int = 0, known: Known | None = None) -> Pixels:
    """Image `index` of a request -> [H, W, 3]. Slow and plain: no batching, no cache."""
    return decode(checkpoint, denoise(checkpoint, params, index, known))


def _evaluate(
    checkpoint: Checkpoint,
    x: torch.Tensor,
    timestep: float,
    told: list[tuple[Text, NDArray[np.float32] | None]],
    control: Control | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw outputs [C, h, w] of the first and the last text with its vector, which may be one."""
    if len(told[0][0].states) != len(told[-1][0].states):
        first, last = (_evaluate(checkpoint, x, timestep, [one], control)[0] for one in told)
        return first, last
    batch = x[None].repeat(len(told), 1, 1, 1).to(checkpoint.dtype)  # [R, C, h, w]
    times = torch.full((len(told),), float(timestep), device=checkpoint.device)
    context = torch.stack([text.states for text, _ in told]).to(checkpoint.dtype)  # [R, L, E]
    vectors = [v for _, v in told if v is not None]
    further = told_unet(checkpoint.told, torch.from_numpy(np.stack(vectors)).to(checkpoint.device), checkpoint.dtype) if vectors else {}
    if (both := shown([control] * len(told), np, None)) is not None:
        further |= checkpoint.controlnets.residuals(both, batch, times, context, further)
    out = checkpoint.unet(batch, times, encoder_hidden_states=context, return_dict=False, **further)[0].float()
    return out[0], out[-1]

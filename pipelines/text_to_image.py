"""Text (and a picture) to image: the stages around the U-Net, and the slow obvious loop that is the engine's oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from pipelines import plain_guidance
from pipelines.known import Known, Pixels, Posterior, begin
from pipelines.loading import Checkpoint
from pipelines.noise import NormalStream
from pipelines.params import GenerationParams
from pipelines.planning import from_pixels, plan_for, table_for, to_pixels
from pipelines.prediction import MEASURED
from pipelines.prompt_chunks import Marks, chunks, weighted
from pipelines.prompts import PLAIN, Reading, read
from pipelines.step_table import MEMORIES
from pipelines.tokens import COMMA

Array = Any


@torch.inference_mode()
def encode_prompt(checkpoint: Checkpoint, prompt: str, reading: Reading = PLAIN) -> torch.Tensor:
    """The text encoder's states of one prompt: [L, E] float32 on the model's device. Longer prompts are cut at L - 2 tokens, or in
    A1111's syntax continued in further chunks: [n L, E].

    One prompt a call: the result must not depend on which prompts came along.
    """
    tokenizer = checkpoint.tokenizer
    if reading.syntax == "plain":
        ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
        return _states(checkpoint, ids.input_ids, ids.attention_mask)
    marks = Marks(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, _comma(tokenizer), tokenizer.model_max_length)
    told = chunks(read(prompt), lambda text: tokenizer(text, add_special_tokens=False, verbose=False).input_ids, marks)
    states = (_states(checkpoint, c.ids, [int(i <= c.ids.index(marks.end)) for i in range(marks.length)]) for c in told)
    return torch.cat([weighted(s, torch.tensor(c.weights, device=s.device)) for s, c in zip(states, told, strict=True)])


def _states(checkpoint: Checkpoint, ids: list[int], mask: list[int]) -> torch.Tensor:
    """[L, E] of L ids; few encoders look at the mask."""
    on_device = [torch.tensor([numbers], device=checkpoint.device) for numbers in (ids, mask)]
    masked = getattr(checkpoint.text_encoder.config, "use_attention_mask", False)
    return checkpoint.text_encoder(on_device[0], attention_mask=on_device[1] if masked else None)[0][0].float()


def _comma(tokenizer: CLIPTokenizer) -> int | None:
    found: int | None = tokenizer.get_vocab().get(COMMA)
    return found


def prompt_tokens(checkpoint: Checkpoint, prompt: str) -> int:
    """How many tokens the prompt has."""
    return len(checkpoint.tokenizer(prompt, truncation=False, verbose=False).input_ids) - 2


@torch.inference_mode()
def decode(checkpoint: Checkpoint, latents: Array) -> Pixels:
    """Latents [C, h, w] -> picture [H, W, 3]. One picture a call, for the same reason.

    Raises FloatingPointError where the VAE overflows.
    """
    vae = checkpoint.vae
    z = torch.as_tensor(latents, device=checkpoint.device).to(vae.dtype)[None] / vae.config.scaling_factor
    image = vae.decode(z + (vae.config.shift_factor or 0), return_dict=False)[0][0].float()  # [3, H, W] in [-1, 1]
    return to_pixels(image.cpu().numpy())


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


def denoise(checkpoint: Checkpoint, params: GenerationParams, index: int = 0, known: Known | None = None) -> NDArray[np.float32]:
    """Image `index` of a request, row by row, one coefficient after the other -> latents [C, h, w]."""
    table = table_for(checkpoint, params)
    guidance = plan_for(checkpoint, params, table)
    stream = NormalStream(params.image_seed(index))
    shape = checkpoint.latent_shape(params.width, params.height)
    cond, uncond = (encode_prompt(checkpoint, text, params.reading) for text in (params.prompt, params.negative_prompt))
    start = begin(known, table, stream, shape)
    blend, beside = start.blend, [] if start.beside is None else [torch.from_numpy(start.beside).to(checkpoint.device)]
    registers = {"x": start.x, "anchor": np.zeros(shape, np.float32)}
    registers |= {f"m{i}": np.zeros(shape, np.float32) for i in range(1, MEMORIES + 1)}
    average = torch.zeros(shape, device=checkpoint.device)
    for row in range(len(table)):
        c_in = table.c_in[row] if table.c_in[row] != MEASURED else 1.0 / registers["x"].std()
        x = torch.from_numpy(registers["x"]).to(checkpoint.device)
        seen, timestep, mark = torch.cat([x * float(c_in), *beside]), table.timestep[row], guidance.mark_at(row)
        c, u = _evaluate(checkpoint, seen, timestep, [cond, uncond] if guidance.guided(row) else [cond])
        with plain_guidance.disturbed(checkpoint.unet, mark):
            p = _evaluate(checkpoint, seen, timestep, [cond, cond])[1] if mark else c
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
    """The stages of a checkpoint around its U-Net, as a worker asks for them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.card, self.ladder = checkpoint.card, checkpoint.ladder
        self.latent_rgb, self.solvers = checkpoint.latent_rgb, checkpoint.solvers
        self.unet_channels = checkpoint.unet_channels

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self._checkpoint.latent_shape(width, height)

    def tokens(self, prompt: str) -> int:
        return prompt_tokens(self._checkpoint, prompt)

    def encode(self, prompt: str, reading: Reading = PLAIN) -> Array:
        """Numpy on a CPU as the registers are."""
        states = encode_prompt(self._checkpoint, prompt, reading)
        return states.numpy() if self._checkpoint.device.type == "cpu" else states

    def decode(self, latents: Array) -> Pixels:
        return decode(self._checkpoint, latents)

    def encode_picture(self, pixels: Pixels, mask: Pixels | None = None) -> Posterior:
        return encode_picture(self._checkpoint, pixels, mask)


def generate(checkpoint: Checkpoint, params: GenerationParams, index: int = 0, known: Known | None = None) -> Pixels:
    """Image `index` of a request -> [H, W, 3]. Slow and plain: no batching, no cache."""
    return decode(checkpoint, denoise(checkpoint, params, index, known))


def _evaluate(checkpoint: Checkpoint, x: torch.Tensor, timestep: float, contexts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw outputs [C, h, w] of the first and the last context, which may be one."""
    if len(contexts[0]) != len(contexts[-1]):
        first, last = (_evaluate(checkpoint, x, timestep, [context])[0] for context in contexts)
        return first, last
    batch = x[None].repeat(len(contexts), 1, 1, 1).to(checkpoint.dtype)  # [R, C, h, w]
    times = torch.full((len(contexts),), float(timestep), device=checkpoint.device)
    out = checkpoint.unet(batch, times, encoder_hidden_states=torch.stack(contexts).to(checkpoint.dtype), return_dict=False)[0].float()
    return out[0], out[-1]

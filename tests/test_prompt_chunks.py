"""Weighted prompts of any length: chunks, states against a plain loop over transformers' encoder, and rows of different lengths."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.checkpoint_folder import describe
from pipelines.denoiser import batch_invariant
from pipelines.engine.engine import Engine
from pipelines.loading import load
from pipelines.openvino_model import Compiler, OpenVinoStages
from pipelines.prompt_chunks import Marks, chunks
from pipelines.prompts import Reading, read
from pipelines.text_to_image import TorchStages, denoise, encode_prompt
from tests.fakes import RowwiseDenoiser
from tests.test_engine import run, sample
from tests.test_openvino import drawn, opened, relative, request
from training.toy import write_toy

A1111 = Reading("a1111")
MARKS = Marks(start=100, end=101, pad=101, comma=0, length=12)  # ten of the prompt in a chunk


def numbers(text: str) -> list[list[int]]:
    """Each a unit of its own; joined by a plus they are one."""
    return [[int(number) for number in unit.split("+")] for unit in text.split()]


def told(prompt: str, marks: Marks = MARKS) -> list[tuple[list[int], list[float]]]:
    return [(chunk.ids, chunk.weights) for chunk in chunks(read(prompt), numbers, marks)]


def test_a_chunk_has_start_end_and_padding() -> None:
    assert told("1 (2:1.5) 3") == [([100, 1, 2, 3, *[101] * 8], [1, 1, 1.5, *[1] * 9])]
    assert told("") == [([100, *[101] * 11], [1.0] * 12)]
    [(ids, _)] = told("1 2", Marks(100, 101, 7, 0, 12))
    assert ids == [100, 1, 2, 101, *[7] * 8], "Stable Diffusion 2 pads with a token of its own, behind the first end"


def test_long_prompts_go_on_in_the_next_chunk() -> None:
    first, second = told("1 2 3 4 5 (6 7 8 9 10 11 12:0.5)")
    assert first == ([100, *range(1, 11), 101], [1] * 6 + [0.5] * 5 + [1])
    assert second == ([100, 11, 12, *[101] * 9], [1, 0.5, 0.5, *[1] * 9])


@pytest.mark.parametrize(("prompt", "wanted"), [
    ("1 2 3 0 5 6 7 8 9 10 11 12", [[1, 2, 3, 0], [5, 6, 7, 8, 9, 10, 11, 12]]),  # what is behind the comma moves along
    ("1 2 3 0 5 6 7 8 9 0 11 12", [[1, 2, 3, 0, 5, 6, 7, 8, 9, 0], [11, 12]]),
    ("1 2 3 4 5 6 7 8 9 10 0 12", [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 12]]),  # a comma behind the end moves nothing
    ("0 2 3 4 5 6 7 8 9 10", [[0, 2, 3, 4, 5, 6, 7, 8, 9, 10]]),  # it fits
    ("1 BREAK 2 BREAK", [[1], [2]]),
    ("BREAK 1", [[], [1]]),
    ("1 0 BREAK 3 4 5 6 7 8 9 10 11 12 13", [[1, 0], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [13]]),  # of an earlier chunk
])  # fmt: skip
def test_where_chunks_end(prompt: str, wanted: list[list[int]]) -> None:
    assert [[id for id in ids if id < 100] for ids, _ in told(prompt)] == wanted


def test_a_comma_further_back_than_twenty_tokens_ends_nothing() -> None:
    wide = Marks(100, 101, 101, 0, 32)
    for place, moved in ((9, False), (10, True)):  # of thirty: 21 and 20 from the comma on
        ids = [1 + i for i in range(35)]
        ids[place] = 0
        [first, *_] = told(" ".join(map(str, ids)), wide)
        assert (first[0][place + 2] == 101) is moved


# The encoder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_toy(tmp_path_factory.mktemp("toy"))


LONG = "red apple, blue car on wood, " * 9

PARTS: dict[str, list[list[tuple[str, float]]]] = {  # prompt -> its chunks, taken apart by hand
    "a (red:1.4) apple [on] wood": [[("a", 1.0), ("red", 1.4), ("apple", 1.0), ("on", 1 / 1.1), ("wood", 1.0)]],
    "a red apple": [[("a red apple", 1.0)]],
    "a cat BREAK (a blue car:0.6)": [[("a cat", 1.0)], [("a blue car", 0.6)]],
    "(a dog:-0.5)": [[("a dog", -0.5)]],
    "": [[("", 1.0)]],
}


@pytest.fixture(scope="module")
def leaning(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with states that have a mean, as those of trained encoders do."""
    folder = Path(shutil.copytree(toy, tmp_path_factory.mktemp("leaning") / "toy"))
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        encoder.get_parameter(next(n for n, _ in encoder.named_parameters() if n.endswith("final_layer_norm.bias"))).add_(0.3)
    encoder.save_pretrained(folder / "text_encoder")
    return folder


def states(folder: Path, told: list[list[tuple[str, float]]], restored: bool) -> torch.Tensor:
    """Plainly: each chunk padded by the tokenizer, encoded, weighed, and perhaps brought back to its mean."""
    tokenizer, encoder = CLIPTokenizer.from_pretrained(folder / "tokenizer"), CLIPTextModel.from_pretrained(folder / "text_encoder")
    found = []
    for chunk in told:
        ids = [tokenizer.bos_token_id]
        weights = torch.ones(tokenizer.model_max_length)
        for text, weight in chunk:
            more = tokenizer(text, add_special_tokens=False).input_ids
            weights[len(ids) : len(ids) + len(more)] = weight
            ids += more
        ids += [tokenizer.eos_token_id] * (tokenizer.model_max_length - len(ids))
        with torch.inference_mode():
            z = encoder(torch.tensor([ids])).last_hidden_state[0]
        scaled = z * weights.reshape(-1, 1).expand(z.shape)
        found.append(scaled * (z.mean() / scaled.mean()) if restored else scaled)
    return torch.cat(found)


@pytest.mark.parametrize("restored", [True, False])
def test_states_are_those_of_a_plain_loop_on_both_backends(toy: Path, leaning: Path, restored: bool) -> None:
    """The mean is brought back where there is one. Else its ratio would be any number: minus 14 for a prompt of celadon-mini."""
    folder = leaning if restored else toy
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    graph = OpenVinoStages(describe(folder), Compiler(describe(folder), None, threads=1))
    for prompt, chunked in PARTS.items():
        wanted = states(folder, chunked, restored).numpy()
        assert np.abs(TorchStages(checkpoint).encode(prompt, A1111).states - wanted).max() < 1e-5
        assert np.abs(graph.encode(prompt, A1111).states - wanted).max() < 1e-5
    plain = encode_prompt(checkpoint, "a red apple").numpy()
    assert np.array_equal(TorchStages(checkpoint).encode("a red apple", A1111).states, plain) and len(plain) == 32
    long = graph.encode(LONG, A1111).states
    assert len(long) >= 3 * 32 and len(long) % 32 == 0 and np.abs(long - TorchStages(checkpoint).encode(LONG, A1111).states).max() < 1e-5


# Rows of different lengths

MIX = [
    request(prompt="a red apple", sampler="dpmpp_2m", steps=6, guidance=3.0),
    request(prompt=LONG, prompt_syntax="a1111", sampler="euler_a", steps=5, guidance=4.0, seed=5),
    request(prompt="a (cat:1.5) BREAK a dog", prompt_syntax="a1111", negative_prompt=LONG, sampler="heun", steps=4, guidance=2.0, seed=6),
    request(prompt="a [cat]", prompt_syntax="a1111", sampler="ddim", steps=6, guidance=1.0, seed=7),
    request(prompt=LONG, prompt_syntax="a1111", steps=4, sampler="unipc", guidance=2.0, guidance_options={"pag_scale": 2.0}, seed=8),
]


def test_prompts_of_any_length_share_a_batch_without_changing_a_bit(toy: Path) -> None:
    stages, denoiser = opened(toy)
    rows = {} if batch_invariant(denoiser, stages.latent_shape(128, 128), stages.encode("").states) else {"rows": 2}
    together = drawn(stages, denoiser, MIX, **rows)
    checkpoint = load(toy, device=torch.device("cpu"), dtype=torch.float32)
    for params, latents in zip(MIX, together, strict=True):
        assert np.array_equal(latents, drawn(stages, denoiser, [params], **rows)[0])
        assert relative(latents, denoise(checkpoint, params)) < 1e-4


class Lengths(RowwiseDenoiser):
    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        assert context.ndim == 3
        return super().__call__(x, timestep, context)


@pytest.mark.parametrize("rows", [None, 4])
def test_rows_of_one_length_share_a_call(rows: int | None) -> None:
    """Cond and uncond of one sample too: nothing is padded, as A1111 has it unless told otherwise."""
    contexts = [np.full((length, 3), value, np.float32) for length, value in ((2, 0.3), (4, -0.1), (2, 0.2), (6, 0.4))]
    wanted = [
        {"cond": contexts[0], "uncond": contexts[1], "seed": 1}, {"cond": contexts[1], "uncond": contexts[2], "seed": 2},
        {"cond": contexts[3], "uncond": contexts[2], "seed": 3}, {"cond": contexts[0], "guidance": 1.0, "seed": 4},
    ]  # fmt: skip
    denoiser = Lengths()
    engine = Engine(denoiser, rows=rows)
    for i, fields in enumerate(wanted):
        engine.add(sample(str(i), **fields))
    crowd = run(engine)
    assert denoiser.calls[:3] == ([4, 2, 1] if rows is None else [4, 4, 4])
    for i, fields in enumerate(wanted):
        alone = Engine(RowwiseDenoiser(), rows=rows)
        alone.add(sample(str(i), **fields))
        np.testing.assert_array_equal(crowd[str(i)].latents, run(alone)[str(i)].latents)

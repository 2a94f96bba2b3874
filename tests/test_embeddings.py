"""Textual inversion: equal to diffusers in every form, on both backends, in batches that leave each other alone; names refused early."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from pipelines.card import EmbeddingInfo
from pipelines.checkpoint_folder import describe
from pipelines.embeddings import EmbeddingError, Embeddings
from pipelines.loading import load
from pipelines.openvino_model import Compiler, OpenVinoStages
from pipelines.params import GenerationParams
from pipelines.prompt_chunks import Marks, chunks
from pipelines.prompts import Reading, read, spans
from pipelines.text_to_image import TorchStages
from service import drafts
from service.errors import ApiError
from service.resolver import Resolver
from service.settings import Settings
from service.terms import reuse_fingerprint
from tests.cards import card
from tests.checkpoints import write
from tests.fleet import Fleet, shared

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


def learned(path: Path, seed: int, count: int, *, word: str = "", widths: tuple[int, ...] = (20,)) -> Path:
    """A file of random vectors: A1111's form, or with a word that of diffusers, or for two encoders."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(count, width, generator=generator) * 0.3 for width in widths]
    keys = [word or "emb_params"] if len(widths) == 1 else ["clip_l", "clip_g"]
    save_file(dict(zip(keys, tensors, strict=True)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("model") / "sd", "sd1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("embeddings")
    learned(here / "ink.safetensors", 1, 1, word="<ink>")
    learned(here / "bad-hands.safetensors", 2, 3)
    save_file({"<flat>": torch.full((20,), 0.2)}, here / "flat.safetensors")
    return here


PROMPTS = ("ink", "a red ink, and more", "Bad-Hands of a blue (frog)", "ink bad-hands flat ink", "inks, think, bad hands", "a red apple")
ALL = ("bad-hands", "flat", "ink")


def test_the_same_states_as_diffusers_on_both_backends(folder: Path, files: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    checkpoint, said = load(folder, embeddings=files, **CPU), describe(folder)
    backends = TorchStages(checkpoint), OpenVinoStages(said, Compiler(said, None, threads=1, embeddings=files))
    told = [(i.name, i.vectors, i.width, i.refused) for i in checkpoint.card.embeddings]
    assert told == [("bad-hands", 3, 20, ""), ("flat", 1, 20, ""), ("ink", 1, 20, "")]
    assert backends[1].card.embeddings == checkpoint.card.embeddings
    plain = {prompt: [stages.encode(prompt).states for stages in backends] for prompt in PROMPTS}
    for name in ALL:
        pipe.load_textual_inversion(str(files), weight_name=f"{name}.safetensors", token=f"<{name}>")
    for prompt in PROMPTS:
        for_diffusers = "".join(f"<{name}>" if name else text for text, name in spans(prompt, ALL))
        with torch.inference_mode():
            wanted = pipe.encode_prompt(for_diffusers, "cpu", 1, False)[0][0].numpy()
        for stages, without in zip(backends, plain[prompt], strict=True):
            found = stages.encode(prompt, Reading(embeddings=ALL)).states
            assert np.abs(found - wanted).max() < 1e-5, prompt
            acts = prompt in PROMPTS[:4]
            assert bool(np.abs(found - without).max() > 0.05) is acts, "else the comparison would be empty"
            assert np.array_equal(stages.encode(prompt).states, without), "nothing stays behind"
            assert acts or np.array_equal(found, without), "to the bit"


def test_weights_and_chunks_go_with_them(folder: Path, files: Path) -> None:
    checkpoint, said = load(folder, embeddings=files, **CPU), describe(folder)
    reading, both = Reading("a1111", 2, embeddings=ALL), []
    for stages in (TorchStages(checkpoint), OpenVinoStages(said, Compiler(said, None, threads=1, embeddings=files))):
        both.append(stages.encode("a (bad-hands:1.4) frog BREAK " + "ink and a blue sky, " * 12, reading).states)
        assert len(both[-1]) > 2 * 32, "chunks"
        assert stages.tokens("ink bad-hands", reading) == 4 and stages.tokens("ink", Reading()) != stages.tokens("ink", reading)
        light = stages.encode("a bad-hands frog", reading).states
        assert np.abs(stages.encode("a (bad-hands:1.4) frog", reading).states - light).max() > 0.05
        assert np.array_equal(stages.encode("a (bad-hands:1.0) frog", reading).states, light)
    assert np.abs(both[0] - both[1]).max() < 1e-5


def test_an_embedding_is_not_cut_by_the_end_of_a_chunk() -> None:
    marks = Marks(100, 101, 101, 0, 12)

    def units(text: str) -> list[list[int]]:
        return [[int(number) for number in unit.split("+")] for unit in text.split()]

    told = [[id for id in chunk.ids if id < 100] for chunk in chunks(read("1 2 3 4 5 6 7 8 90+91+92 9"), units, marks)]
    assert told == [[1, 2, 3, 4, 5, 6, 7, 8], [90, 91, 92, 9]]


def test_sdxl_has_vectors_for_both_encoders(tmp_path: Path) -> None:
    folder, files = write(tmp_path / "xl", "sdxl"), tmp_path / "embeddings"
    files.mkdir()
    learned(files / "ink.safetensors", 1, 2, widths=(20, 28))
    learned(files / "one.safetensors", 1, 2)
    checkpoint = load(folder, embeddings=files, **CPU)
    assert [(i.name, i.vectors, i.width, bool(i.refused)) for i in checkpoint.card.embeddings] == [
        ("ink", 2, 48, False), ("one", 0, 0, True),
    ]  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(folder)
    for key, tokenizer, encoder in (("clip_l", pipe.tokenizer, pipe.text_encoder), ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2)):
        from safetensors.torch import load_file

        tensor = load_file(files / "ink.safetensors")[key]
        pipe.load_textual_inversion({"emb_params": tensor}, token="<ink>", tokenizer=tokenizer, text_encoder=encoder)
    with torch.inference_mode():
        states, _, pooled, _ = pipe.encode_prompt("a <ink> cat", do_classifier_free_guidance=False)
    found = TorchStages(checkpoint).encode("a ink cat", Reading(embeddings=("ink",)))
    assert np.abs(found.states - states[0].numpy()).max() < 1e-5 and np.abs(found.pooled - pooled[0].numpy()).max() < 1e-5
    assert np.abs(found.states - TorchStages(checkpoint).encode("a ink cat").states).max() > 0.05


BAD: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "wide": ({"emb_params": torch.zeros(2, 24)}, "24 numbers, this model's 20"),
    "long": ({"emb_params": torch.zeros(31, 20)}, "31 vectors"),
    "none": ({"emb_params": torch.zeros(0, 20)}, "no list of vectors"),
    "cube": ({"emb_params": torch.zeros(2, 2, 20)}, "no list of vectors"),
    "nan": ({"emb_params": torch.full((1, 20), torch.nan)}, "no numbers"),
    "whole": ({"emb_params": torch.zeros((1, 20), dtype=torch.int64)}, "other numbers"),
    "two": ({"clip_l": torch.zeros(1, 20), "clip_g": torch.zeros(1, 28)}, "two text encoders"),
    "lora": ({"a": torch.zeros(1, 20), "b": torch.zeros(1, 20)}, "other tensors"),
}


def test_what_is_no_embedding_of_the_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    for name, (tensors, _) in BAD.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    learned(tmp_path / "A.safetensors", 1, 1)
    learned(tmp_path / "a.safetensors", 1, 1)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wide.safetensors").read_bytes()[:-9])
    torch.save({"string_to_param": {"*": torch.zeros(1, 20)}}, tmp_path / "old.pt")
    embeddings = Embeddings(tmp_path, {"text_encoder": 20}, 30)
    found = {info.name: info.refused for info in embeddings.infos}
    for name, (_, why) in BAD.items():
        assert why in found[name], name
    assert "pickle" in found["old"] and "safetensors" in found["cut"] and not found["A"] and "capital" in found["a"]
    two = Embeddings(tmp_path, {"text_encoder": 20, "text_encoder_2": 28}, 30)
    assert [info.name for info in two.infos if not info.refused] == ["two"]
    (tmp_path / "A.safetensors").unlink()
    with pytest.raises(EmbeddingError):
        embeddings.learned("text_encoder", ["A"], 50)


HELD = (EmbeddingInfo("ink", "aa", 1, 20), EmbeddingInfo("bad-hands", "bb", 3, 20), EmbeddingInfo("wide", refused="it is of another model"))
CARD = card(embeddings=HELD, words=("red", "apple"))


def resolved(**said: Any) -> Any:
    draft = drafts.Draft(**{"prompt": "a red apple", "seed": 1} | said)
    fast = Resolver(Settings())
    plain, *kept = drafts.resolve(draft, CARD, Settings()), fast.resolve(draft, CARD), fast.resolve(draft, CARD)
    assert kept == [plain, plain], "the short way knows them too"
    return plain


def acting(**said: Any) -> tuple[str, ...]:
    embeddings: tuple[str, ...] = resolved(**said).params.embeddings
    return embeddings


def test_names_act_where_they_are_listed_or_in_a1111s_syntax_wherever_they_stand() -> None:
    assert acting(prompt="ink") == () and acting(prompt="wide") == (), "plain: text"
    assert acting(prompt="an INK", embeddings=("ink",)) == ("ink",)
    assert acting(prompt="(ink:1.2)", negative_prompt="[bad-hands]", prompt_syntax="a1111") == ("bad-hands", "ink")
    assert acting(prompt="inks, my_ink, i(nk) # ink", prompt_syntax="a1111") == ()
    params = resolved(prompt="red ink", embeddings=("ink",)).params
    assert GenerationParams.from_dict(params.brief()) == params and "embeddings" not in resolved().params.brief()
    assert type(CARD).from_dict(CARD.to_dict()) == CARD
    assert not resolved(prompt="red ink", embeddings=("ink",)).warnings, "a name is no unknown word"


@pytest.mark.parametrize(("said", "code", "param"), [
    ({"embeddings": ("inc",)}, "unknown_embedding", "embeddings"),
    ({"prompt": "wide", "embeddings": ("wide",)}, "unknown_embedding", "embeddings"),
    ({"embeddings": ("wide",)}, "unknown_embedding", "embeddings"),
    ({"embeddings": ("ink",)}, "invalid_value", "embeddings"),
    ({"prompt": "ink", "embeddings": ("ink", "ink")}, "invalid_value", "embeddings"),
    ({"prompt": "a (wide:1.1) apple", "prompt_syntax": "a1111"}, "unknown_embedding", "prompt"),
    ({"negative_prompt": "wide", "prompt_syntax": "a1111"}, "unknown_embedding", "negative_prompt"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_queued(said: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        resolved(**said)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_another_file_of_that_name_draws_another_picture() -> None:
    other = card(embeddings=(EmbeddingInfo("ink", "cc", 1, 20), *HELD[1:]), words=CARD.words)
    params = resolved(prompt="ink", embeddings=("ink",)).params
    assert reuse_fingerprint(params, CARD) != reuse_fingerprint(params, other)
    assert reuse_fingerprint(resolved().params, CARD) == reuse_fingerprint(resolved().params, other)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from training.toy import write_toy

    folder = tmp_path_factory.mktemp("fleet")
    (folder / "embeddings").mkdir()
    learned(folder / "embeddings" / "ink.safetensors", 1, 2, widths=(32,))
    (folder / "embeddings" / "old.pt").write_bytes(b"pickle")
    with shared(folder, write_toy(folder / "toy"), CELADON_EMBEDDINGS=str(folder / "embeddings")) as fleet:
        yield fleet


def pixels(fleet: Fleet, job: dict[str, Any]) -> bytes:
    done = fleet.finished(job["id"])
    assert done["status"] == "succeeded", done
    return Image.open(io.BytesIO(fleet.picture(done))).tobytes()


@pytest.mark.timeout(300)
def test_an_embedding_acts_on_its_job_alone(service: Fleet) -> None:
    [model] = service.client.get("/models").json()
    assert {one["name"]: bool(one["refused"]) for one in model["embeddings"]} == {"ink": False, "old": True}
    listed = service.client.get("/sdapi/v1/embeddings").json()
    assert listed["loaded"]["ink"]["vectors"] == 2 and listed["loaded"]["ink"]["shape"] == 32 and set(listed["skipped"]) == {"old"}
    asked: dict[str, Any] = {"prompt": "a red ink", "seed": 3, "width": 64, "height": 64, "guidance": 5.0}
    before = pixels(service, service.submit(**asked))
    jobs = [service.submit(**asked, embeddings=["ink"]), service.submit(**asked, num_images=2)]
    written, beside = (pixels(service, job) for job in jobs)
    assert beside == before != written
    params = service.job(jobs[0]["id"])["params"]
    again = {name: params[name] for name in ("prompt", "embeddings", "seed", "width", "height", "guidance", "steps")}
    assert pixels(service, service.submit(**again)) == written, "what an answer holds can be asked for"
    a1111 = service.submit(**asked | {"prompt_syntax": "a1111"})
    assert a1111["params"]["embeddings"] == ["ink"] and pixels(service, a1111) == written
    refused = service.client.post("/sdapi/v1/txt2img", json={"prompt": "an old apple", "width": 64, "height": 64})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unknown_embedding"

"""What `celadon generate` and the client take reaches the job: every field of POST /generate, against a service that holds all there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from celadon import Client
from celadon.client import ApiError
from celadon.generate_fields import fields
from celadon.generate_options import AS_THEY_ARE, MANY, TO_BE_READ
from service.generate_request import GenerateRequest
from tests import lora_files
from tests.fleet import Fleet, shared
from tests.picture_samples import as_file, sample_picture
from tests.test_cli import celadon
from tests.test_controlnet import write_net
from tests.test_embeddings import learned

NAMED = {"loras", "embeddings", "outpaint", "upscale", "controlnet", "sampler_options", "schedule_options", "guidance_options"}
BY_SET = {"preview", "size_conditioning", "priority", "service_class", "deadline_s", "webhook", "reuse"}


def read(**said: Any) -> dict[str, Any]:
    nothing = dict.fromkeys((*AS_THEY_ARE, *TO_BE_READ)) | {name: [] for name in MANY}
    return fields(nothing | said)


def test_every_field_has_its_option() -> None:
    """What is added to the API is added here, or to what --set alone reaches."""
    assert set(AS_THEY_ARE) | NAMED | BY_SET | {"prompt"} == set(GenerateRequest.model_fields)
    assert not set(AS_THEY_ARE) & (NAMED | BY_SET)


@pytest.mark.parametrize(("said", "found"), [
    ({}, {}),
    ({"lora": ["ink", "film:0.4", "a:b", "odd:-1"]},
     {"loras": [{"name": "ink"}, {"name": "film", "weight": 0.4}, {"name": "a:b"}, {"name": "odd", "weight": -1.0}]}),
    ({"outpaint": "8, 0,16,0"}, {"outpaint": {"left": 8, "top": 0, "right": 16, "bottom": 0}}),
    ({"upscale": 2.0}, {"upscale": 2.0}),
    ({"upscale": 2.0, "upscale_option": ["method=latent", "steps=3"]}, {"upscale": {"factor": 2.0, "method": "latent", "steps": 3}}),
    ({"upscale_option": ["width=96", "height=64"]}, {"upscale": {"width": 96, "height": 64}}),
    ({"set_": ["reuse=true", "service_class=batch", "size_conditioning={\"crop\": [0, 8]}"], "seed": 0},
     {"reuse": True, "service_class": "batch", "size_conditioning": {"crop": [0, 8]}, "seed": 0}),
])  # fmt: skip
def test_how_options_are_written(said: dict[str, Any], found: dict[str, Any]) -> None:
    assert read(**said) == found
    GenerateRequest.model_validate({"prompt": "x"} | found)


@pytest.mark.parametrize(("said", "words"), [
    ({"outpaint": "8,8"}, "LEFT,TOP,RIGHT,BOTTOM"),
    ({"outpaint": "8,8,8,x"}, "LEFT,TOP,RIGHT,BOTTOM"),
    ({"upscale": 2.0, "upscale_option": ["factor=3"]}, "factor is given twice"),
    ({"control": "canny"}, "NAME=FILE"),
    ({"control": "canny=/nothing.png"}, "a file that there is"),
    ({"control": f"canny={__file__}", "control_option": ["image=x"]}, "image is given twice"),
    ({"control_option": ["scale=1"]}, "goes with --control"),
    ({"seed": 1, "set_": ["seed=2"]}, "seed is given twice"),
    ({"set_": ["prompt=x"]}, "prompt is given twice"),
    ({"set_": ["reuse"]}, "name=value"),
])  # fmt: skip
def test_what_cannot_be_meant(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(**said)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from training.toy import write_toy

    folder = tmp_path_factory.mktemp("fleet")
    model = write_toy(folder / "toy")
    (folder / "loras").mkdir()
    (folder / "words").mkdir()
    lora_files.kohya(folder / "loras" / "ink.safetensors", lora_files.layers(model, 1, strength=0.2), alpha=3.0)
    learned(folder / "words" / "blot.safetensors", 1, 2, widths=(32,))
    write_net(folder / "nets" / "canny", model, 1, (4, 6, 8, 8))
    held = {"CELADON_LORAS": "loras", "CELADON_EMBEDDINGS": "words", "CELADON_CONTROLNETS": "nets"}
    with shared(folder, model, CELADON_BACKEND="torch", **{name: str(folder / place) for name, place in held.items()}) as fleet:
        yield fleet


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(as_file(sample_picture(64, 64)))
    return path


def drawn(service: Fleet, folder: Path, *options: str, size: tuple[int, int]) -> dict[str, Any]:
    """What the job was, whose picture has this size."""
    path = folder / "out.png"
    run = celadon("generate", "a red blot", "--steps", "4", "--seed", "3", *options, "-o", str(path), CELADON_URL=service.url)
    assert run.returncode == 0, run.stderr
    with Image.open(path) as found:
        assert found.size == size
    newest: dict[str, Any] = service.client.get("/jobs?limit=1").json()["jobs"][0]
    return newest


@pytest.mark.timeout(300)
def test_the_command_names_networks(service: Fleet, picture: Path) -> None:
    networks = ("--lora", "ink:0.7", "--embedding", "blot", "--control", f"canny={picture}")
    scaled = ("--control-option", "scale=0.5", "--width", "64", "--height", "64", "--set", "priority=5")
    job = drawn(service, picture.parent, *networks, *scaled, size=(64, 64))
    said = job["params"]
    assert (said["loras"], said["embeddings"]) == ([{"name": "ink", "weight": 0.7}], ["blot"])
    assert (said["controlnet"]["name"], said["controlnet"]["scale"], job["priority"]) == ("canny", 0.5, 5)
    for wrong, words in ((("--lora", "inc"), "ink"), (("--clip-skip", "2"), "clip_skip must be from 1 to 1")):  # it has one layer
        run = celadon("generate", "x", *wrong, CELADON_URL=service.url)
        assert run.returncode == 1 and words in run.stderr


@pytest.mark.timeout(300)
def test_the_command_enlarges_in_each_way(service: Fleet, picture: Path) -> None:
    beyond = drawn(service, picture.parent, "--image", str(picture), "--outpaint", "16,0,32,8", "--mask-feather", "4", size=(112, 72))
    assert beyond["params"]["outpaint"] == {"left": 16, "right": 32, "bottom": 8} and beyond["params"]["mask_feather"] == 4
    latent = ("--upscale", "1.5", "--upscale-option", "method=latent", "--upscale-option", "strength=0.5")
    larger = drawn(service, picture.parent, "--width", "64", "--height", "64", *latent, size=(96, 96))
    assert larger["params"]["upscale"].items() >= {"method": "latent", "strength": 0.5}.items()
    varied = drawn(service, picture.parent, "--image", str(picture), "--kind", "variations", "--start", "0.5", size=(64, 64))
    assert (varied["params"]["kind"], varied["params"]["start"]) == ("variations", 0.5)


@pytest.mark.timeout(300)
def test_the_client_passes_them_too(service: Fleet, picture: Path) -> None:
    with Client(service.url) as client:
        shown = {"name": "canny", "image": client.upload(picture)["key"], "start": 0.25}
        worn = [{"name": "ink", "weight": -0.5}]
        size: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "upscale": {"factor": 1.5, "method": "lanczos"}}
        job = client.submit("a blot", seed=1, loras=worn, embeddings=["blot"], controlnet=shown, **size)
        assert client.wait(job.id).status == "succeeded"
        with pytest.raises(ApiError, match="clip_skip"):
            client.submit("a blot", clip_skip=2)
        again = client.submit("a blot", **{name: value for name, value in job.params.items() if name != "prompt"})
    assert again.params == job.params and job.params["loras"] == worn and job.params["controlnet"]["start"] == 0.25
    assert (job.params["embeddings"], job.params["upscale"]["method"]) == (["blot"], "lanczos")

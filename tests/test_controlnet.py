"""ControlNets: equal to diffusers' pipelines, alone and beside jobs that have none or another one; names and files refused early."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.card import ControlNetInfo
from pipelines.checkpoint_folder import describe
from pipelines.control_files import NO_GRAPH
from pipelines.controls import control_for
from pipelines.loading import load
from pipelines.openvino_model import Compiler, OpenVinoStages
from pipelines.params import GenerationParams, controlled_steps
from pipelines.planning import table_for
from pipelines.text_to_image import denoise
from service import drafts
from service.errors import ApiError
from service.inputs import Given, Pictures
from service.picture_head import Head
from service.settings import Settings
from service.terms import reuse_fingerprint
from tests import test_architectures
from tests.cards import card
from tests.fleet import Fleet, shared
from tests.picture_samples import as_url, sample_picture
from tests.test_architectures import SIZE, TOLERANCE, Worker, asked
from workers.encode import describe as described
from workers.messages import Inputs

folders = test_architectures.folders
CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
SHOWN = sample_picture(SIZE[1] + 16, SIZE[0] + 24)  # of another size than is drawn
PIPELINES = {"sd1": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}


def write_net(path: Path, model: Path, seed: int, channels: tuple[int, ...] = (4, 6, 10)) -> Path:
    """Random for that model, and of some effect: those that are made anew begin with zeros."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def nets(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("nets")
            for seed, net in enumerate(("canny", "depth")):
                write_net(made[name] / net, folders(name), seed)
        return made[name]

    return folder


def control(name: str = "canny", **more: float) -> dict[str, Any]:
    return {"name": name, "image": "k", "scale": 1.0, "start": 0.0, "end": 1.0} | more


def reference(model: Path, net: Path, params: GenerationParams, kind: str = "", **further: Any) -> np.ndarray:
    """diffusers' picture [H, W, 3] in 0..1."""
    said, own = params.controlnet, {"safety_checker": None} if model.name == "sd1" else {"add_watermarker": False}
    shown_as = "control_image" if kind else "image"
    further |= {shown_as: Image.fromarray(SHOWN), "width": params.width, "height": params.height}
    pipe = getattr(diffusers, kind or PIPELINES[model.name]).from_pretrained(
        model, controlnet=diffusers.ControlNetModel.from_pretrained(net / said["name"]), **own
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        params.prompt, negative_prompt=params.negative_prompt, num_inference_steps=params.steps, guidance_scale=params.guidance,
        controlnet_conditioning_scale=said["scale"], control_guidance_start=said["start"], control_guidance_end=said["end"],
        generator=torch.Generator("cpu").manual_seed(params.seed), output_type="np", **further,
    ).images[0]  # fmt: skip


@pytest.mark.timeout(180)  # diffusers loads a pipeline for each
@pytest.mark.parametrize("name", PIPELINES)
def test_a_worker_draws_what_diffusers_draws(folders: Callable[[str], Path], nets: Callable[[str], Path], name: str) -> None:
    checkpoint = load(folders(name), controlnets=nets(name), **CPU)
    assert [(info.name, info.refused) for info in checkpoint.card.controlnets] == [("canny", ""), ("depth", "")]
    worker = Worker(checkpoint)
    plain = worker.exact(asked(name))
    for said in (control(scale=0.7), control("depth", start=0.2, end=0.7)):
        params = asked(name, controlnet=said)
        wanted, found = reference(folders(name), nets(name), params), worker.exact(params, control=SHOWN)
        assert np.abs(found - wanted).max() <= TOLERANCE, said
        assert np.abs(plain - wanted).max() > 20 * TOLERANCE, "a ControlNet that changes nothing would make the comparison empty"
    worker.stop()


@pytest.mark.timeout(120)
def test_image_to_image_is_steered_too(folders: Callable[[str], Path], nets: Callable[[str], Path]) -> None:
    worker, begins = Worker(load(folders("sd1"), controlnets=nets("sd1"), **CPU)), sample_picture(SIZE[1], SIZE[0], seed=4)
    said = control(start=0.3, scale=0.8)
    params = asked("sd1", kind="image_to_image", image="i", strength=0.8, steps=8, controlnet=said)
    kind = {"kind": "StableDiffusionControlNetImg2ImgPipeline", "image": Image.fromarray(begins), "strength": 0.8}
    found = worker.exact(params, Inputs(begins, None), SHOWN)
    assert np.abs(found - reference(folders("sd1"), nets("sd1"), params, **kind)).max() <= TOLERANCE
    worker.stop()


@pytest.mark.timeout(120)
def test_neighbours_with_none_and_another_one_are_left_alone_to_the_bit(
    folders: Callable[[str], Path], nets: Callable[[str], Path]
) -> None:
    checkpoint = load(folders("sd1"), controlnets=nets("sd1"), **CPU)
    worker, without = Worker(checkpoint, rows=1), Worker(load(folders("sd1"), **CPU), rows=1)  # odd widths: places tell
    crowd = [
        asked("sd1"), asked("sd1", controlnet=control(), seed=1), asked("sd1", controlnet=control("depth", scale=0.5), seed=2),
        asked("sd1", controlnet=control(scale=0.3, end=0.5), seed=3), asked("sd1", seed=4, guidance=1.0, sampler="heun"),
    ]  # fmt: skip
    together = worker.draw(*crowd, control=SHOWN)
    for params, picture in zip(crowd, together, strict=True):
        np.testing.assert_array_equal(picture, worker.draw(params, control=SHOWN)[0])
    np.testing.assert_array_equal(together[0], without.draw(crowd[0])[0], "as if there were no ControlNets")
    worker.exact(crowd[3], control=SHOWN)
    sized = np.asarray(Image.fromarray(SHOWN).resize((SIZE[1], SIZE[0]), Image.Resampling.LANCZOS))
    slow = denoise(checkpoint, crowd[3], control=control_for(crowd[3], sized, table_for(checkpoint, crowd[3])))
    assert np.abs(worker.stages.latents - slow).max() < 1e-4, "the slow loop's twin"
    for one in (worker, without):
        one.stop()


def changed(net: Path, to: Path, **config: Any) -> None:
    shutil.copytree(net, to)
    (to / "config.json").write_text(json.dumps(json.loads((net / "config.json").read_text()) | config))


def test_what_is_no_controlnet_of_the_model_is_refused_with_its_reason(
    folders: Callable[[str], Path], nets: Callable[[str], Path], tmp_path: Path
) -> None:
    net = nets("sd1") / "canny"
    shutil.copytree(nets("sdxl") / "canny", tmp_path / "xl")
    changed(net, tmp_path / "union", _class_name="ControlNetUnionModel")
    changed(net, tmp_path / "pooling", global_pool_conditions=True)
    changed(net, tmp_path / "gray", conditioning_channels=1)
    changed(net, tmp_path / "large", conditioning_embedding_out_channels=[4, 6, 10, 12])
    changed(net, tmp_path / "thin", conditioning_embedding_out_channels=[4, 6, 12])
    changed(net, tmp_path / "cut")
    weights = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    changed(net, tmp_path / "old")
    (tmp_path / "old" / weights.name).rename(tmp_path / "old" / "diffusion_pytorch_model.bin")
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "file.safetensors")
    (tmp_path / "file2.pth").write_bytes(b"pickle")
    found = {info.name: info.refused for info in load(folders("sd1"), controlnets=tmp_path, **CPU).card.controlnets}
    for name, why in {
        "xl": "another model", "union": "ControlNetUnionModel", "pooling": "guess mode", "gray": "channels", "large": "another size",
        "thin": "config describes", "cut": "cut", "old": "pickle",
        "empty": "config.json is missing", "file": "single file", "file2": "pickle",
    }.items():  # fmt: skip
        assert why in found[name], (name, found[name])


def test_openvino_says_that_it_has_no_graph(tmp_path: Path, nets: Callable[[str], Path]) -> None:
    from training.toy import write_toy

    said = describe(write_toy(tmp_path / "toy"))
    stages = OpenVinoStages(said, Compiler(said, None, threads=1, controlnets=nets("sd1")))
    assert [(info.name, info.refused) for info in stages.card.controlnets] == [("canny", NO_GRAPH), ("depth", NO_GRAPH)]


def test_the_steps_are_those_of_diffusers() -> None:
    assert [list(controlled_steps(5, 0.0, 1.0)), list(controlled_steps(5, 0.2, 0.7))] == [[0, 1, 2, 3, 4], [1, 2]]
    assert not controlled_steps(2, 0.3, 0.6) and list(controlled_steps(10, 0.55, 0.9)) == [6, 7, 8]


HELD = (ControlNetInfo("canny", "aa"), ControlNetInfo("pose", refused="it is of another model"))
CARD = card(controlnets=HELD, kinds=("text_to_image", "image_to_image", "inpaint", "outpaint"))
GIVEN = Given("in-k/0.png", Head("png", 64, 48, False))


def resolved(given: Pictures | None = None, **said: Any) -> GenerationParams:
    pictures = given or Pictures(control=GIVEN)
    return drafts.resolve(drafts.Draft(**{"prompt": "a", "seed": 1, "steps": 10} | said), CARD, Settings(), pictures).params


def test_what_was_asked_for_is_what_is_drawn() -> None:
    params = resolved(controlnet={"name": "canny", "image": "k", "scale": 0.5, "end": 0.5})
    assert params.controlnet == {"name": "canny", "image": GIVEN.key, "scale": 0.5, "start": 0.0, "end": 0.5}
    assert GenerationParams.from_dict(params.brief()) == params and "controlnet" not in resolved().brief()
    assert GIVEN.key not in described(params, 0, CARD, "1")[1], "keys of pictures are for those who stored them"
    other = card(controlnets=(ControlNetInfo("canny", "bb"),), kinds=CARD.kinds)
    assert reuse_fingerprint(params, CARD) != reuse_fingerprint(params, other)
    assert type(CARD).from_dict(CARD.to_dict()) == CARD


@pytest.mark.parametrize(("said", "code", "param"), [
    ({"controlnet": {"name": "cany", "image": "k"}}, "unknown_controlnet", "controlnet.name"),
    ({"controlnet": {"name": "pose", "image": "k"}}, "unknown_controlnet", "controlnet.name"),
    ({"controlnet": {"name": "canny", "image": "k", "start": 0.5, "end": 0.5}}, "invalid_value", "controlnet.start"),
    ({"controlnet": {"name": "canny", "image": "k", "start": 0.31, "end": 0.39}}, "invalid_value", "controlnet.start"),
    ({"controlnet": {"name": "canny", "image": "k", "scale": 11}}, "invalid_value", "controlnet.scale"),
    ({"controlnet": {"name": "canny", "image": "k"}, "given": Pictures()}, "missing_field", "controlnet.image"),
    ({"controlnet": {"name": "canny", "image": "k"}, "outpaint": {"left": 16}, "given": Pictures(GIVEN, None, GIVEN)},
     "not_supported", "controlnet"),
    ({"controlnet": {"name": "canny", "image": "k"}, "cache_interval": 2}, "not_supported", "cache_interval"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_queued(said: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        resolved(**said)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from training.toy import write_toy

    folder = tmp_path_factory.mktemp("fleet")
    model = write_toy(folder / "toy")
    write_net(folder / "nets" / "canny", model, 1, (4, 6, 8, 8))
    (folder / "nets" / "old.pth").write_bytes(b"pickle")
    with shared(folder, model, CELADON_CONTROLNETS=str(folder / "nets"), CELADON_BACKEND="torch") as fleet:
        yield fleet


def pixels(fleet: Fleet, job: dict[str, Any]) -> bytes:
    done = fleet.finished(job["id"])
    assert done["status"] == "succeeded", done
    return Image.open(io.BytesIO(fleet.picture(done))).tobytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_controlnet_acts_on_its_job_alone(service: Fleet) -> None:
    [model] = service.client.get("/models").json()
    assert {net["name"]: bool(net["refused"]) for net in model["controlnets"]} == {"canny": False, "old": True}
    asked: dict[str, Any] = {"seed": 3, "width": 64, "height": 64, "guidance": 3.0}
    before = pixels(service, service.submit(**asked))
    wanted = {"name": "canny", "image": as_url(SHOWN), "scale": 2.0}
    jobs = [service.submit(**asked, controlnet=wanted), service.submit(**asked, controlnet={})]
    steered, beside = (pixels(service, job) for job in jobs)
    assert beside == before != steered
    said = service.job(jobs[0]["id"])["params"]["controlnet"]
    assert pixels(service, service.submit(**asked, controlnet=said)) == steered, "what an answer holds can be asked for"
    small = service.submit(**asked, controlnet=said, upscale=1.5)
    assert pixels(service, small) != pixels(service, service.submit(**asked, upscale=1.5))
    for body, code, param in (
        ({"name": "old", "image": as_url(SHOWN)}, "unknown_controlnet", "controlnet.name"),
        ({"name": "canny", "image": as_url(SHOWN), "guess_mode": True}, "unknown_field", "controlnet.guess_mode"),
        ({"name": "canny", "image": "data:image/png;base64,AAAA"}, "invalid_picture", "controlnet.image"),
        ({"name": "canny", "image": "in-0123456789/0.png"}, "picture_not_found", "controlnet.image"),
    ):
        error = service.client.post("/generate", json={"prompt": "a", "controlnet": body}).json()["error"]
        assert (error["code"], error["param"]) == (code, param)

"""A1111's door, spoken to by webuiapi; what it refuses, and that nothing of one request becomes part of another."""

from __future__ import annotations

import base64
import io
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import webuiapi
from PIL import Image, PngImagePlugin

from fleet import Fleet
from live_gateway import Live, depth, running
from pipelines.infotext import infotext, parse, schedule_label
from pipelines.name_tables import A1111_SCHEDULES
from pipelines.names import a1111
from pipelines.params import GenerationParams
from service.png_text import texts
from tests.cards import card

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy


@pytest.fixture
def api(fleet: Fleet) -> Iterator[webuiapi.WebUIApi]:
    client = webuiapi.WebUIApi(host="127.0.0.1", port=fleet.port, steps=6)
    yield client
    client.session.close()


def test_txt2img_as_the_client_sends_it(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    found = api.txt2img(prompt="a red apple", negative_prompt="a car", seed=7, width=128, height=128, batch_size=2, n_iter=2, cfg_scale=3)
    assert [image.size for image in found.images] == [(128, 128)] * 4
    assert found.info["all_seeds"] == [7, 8, 9, 10] and found.info["sampler_name"] == "Euler a" and found.info["sd_model_name"] == "toy"
    assert found.info["infotexts"][1].startswith("a red apple\nNegative prompt: a car\nSteps: 6, Sampler: Euler a,")
    params = fleet.client.get(f"/jobs/{found.info['job_id']}").json()["params"]
    assert (params["sampler"], params["schedule"], params["guidance"]) == ("euler_a", "linspace", 3.0)
    assert params["sampler_options"]["eta"] == 1.0 and params["num_images"] == 4
    again = api.txt2img(prompt="a red apple", negative_prompt="a car", seed=8, width=128, height=128, cfg_scale=3)
    assert again.image.tobytes() == found.images[1].tobytes(), "a seed tells the picture, whoever was beside it"


def test_hires_draws_a_second_pass(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    found = api.txt2img(
        prompt="a red apple", seed=7, width=64, height=64, cfg_scale=3, enable_hr=True, hr_scale=2, hr_upscaler="Latent",
        hr_second_pass_steps=5, denoising_strength=0.6,
    )  # fmt: skip
    assert found.image.size == (128, 128) and found.info["denoising_strength"] == 0.6
    assert "Denoising strength: 0.6, Hires resize: 128x128, Hires steps: 5, Hires upscaler: Latent" in found.info["infotexts"][0]
    job = fleet.client.get(f"/jobs/{found.info['job_id']}").json()
    assert job["params"]["upscale"] == {"width": 128, "height": 128, "steps": 5, "strength": 0.6, "method": "latent"}
    assert job["progress"]["steps_done"] == 6 + 3


@pytest.mark.parametrize(("asked", "pair"), [
    ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, ("dpmpp_2m", "karras")),
    ({"sampler_name": "DPM++ 2M", "scheduler": "automatic"}, ("dpmpp_2m", "karras")),
    ({"sampler_name": "DPM++ 2M Karras", "scheduler": "automatic"}, ("dpmpp_2m", "karras")),
    ({"sampler_name": "Euler", "scheduler": "SGM Uniform"}, ("euler", "sgm_uniform")),
    ({"sampler_name": "k_heun", "scheduler": None}, ("heun", "linspace")),
])  # fmt: skip
def test_labels_mean_what_they_mean_there(api: webuiapi.WebUIApi, fleet: Fleet, asked: dict[str, Any], pair: tuple[str, str]) -> None:
    found = api.txt2img(prompt="a cat", width=128, height=128, **asked)
    params = fleet.client.get(f"/jobs/{found.info['job_id']}").json()["params"]
    assert (params["sampler"], params["schedule"]) == pair


def test_prompts_have_their_signs(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    asked = {"width": 128, "height": 128, "seed": 7, "steps": 4, "cfg_scale": 3, "sampler_name": "Euler"}
    weighted = api.txt2img(prompt="a (red:1.5) apple, " * 12 + "BREAK [on] a background", **asked)
    job = fleet.client.get(f"/jobs/{weighted.info['job_id']}").json()
    assert job["params"]["prompt_syntax"] == "a1111" and job["warnings"] == [], "nothing is left out, and signs are no unknown words"
    native = {
        name: job["params"][name]
        for name in ("prompt", "prompt_syntax", "sampler", "schedule", "steps", "guidance", "seed", "width", "height")
    }
    again = fleet.finished(fleet.submit(**native)["id"])
    assert fleet.picture(again) == fleet.picture(job), "no feature lives in a door"
    plain = fleet.finished(fleet.submit(**native | {"prompt_syntax": "plain"})["id"])
    assert fleet.picture(plain) != fleet.picture(job) and "prompt_truncated" in {w["code"] for w in plain["warnings"]}
    same = fleet.finished(fleet.submit(**native | {"prompt": "a red apple"})["id"])
    literal = fleet.finished(fleet.submit(**native | {"prompt": "a red apple", "prompt_syntax": "plain"})["id"])
    pixels = [Image.open(io.BytesIO(fleet.picture(drawn))).tobytes() for drawn in (same, literal)]
    assert pixels[0] == pixels[1], "without signs both syntaxes say the same"


def test_what_a_client_looks_for_first(api: webuiapi.WebUIApi) -> None:
    assert api.get_sd_models()[0]["model_name"] == "toy" == api.util_get_current_model().partition(" [")[0]
    assert {"Euler a", "DPM++ 2M", "Heun"} <= set(api.util_get_sampler_names()) and "DPM adaptive" not in api.util_get_sampler_names()
    assert {"automatic", "karras", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    assert api.get_scripts() == {"txt2img": [], "img2img": []} and api.get_embeddings() == {"loaded": {}, "skipped": {}}
    empty = (api.get_loras, api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers)
    assert all(ask() == [] for ask in empty)
    assert [one["name"] for one in (*api.get_latent_upscale_modes(), *api.get_upscalers())] == ["Latent", "Lanczos"]
    assert api.get_memory().keys() == {"ram", "cuda"} and api.get_cmd_flags()["api"] is True


def test_names_that_the_lists_tell_are_taken(api: webuiapi.WebUIApi) -> None:
    for scheduler in api.util_get_scheduler_names():
        assert api.txt2img(prompt="a dog", width=128, height=128, sampler_name="Euler", scheduler=scheduler, steps=4).images
    title = api.util_get_model_names()[0]
    assert api.txt2img(prompt="a dog", width=128, height=128, override_settings={"sd_model_checkpoint": title}).images


def test_png_info_reads_what_txt2img_wrote(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(prompt='a "red" apple, ripe', negative_prompt="a car", seed=3, width=128, height=128)
    buffer = io.BytesIO()
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("parameters", drawn.image.info["parameters"])
    drawn.image.save(buffer, "PNG", pnginfo=chunks)
    raw = api.session.post(f"{api.baseurl}/png-info", json={"image": base64.b64encode(buffer.getvalue()).decode()}).json()
    assert raw["parameters"]["Prompt"] == 'a "red" apple, ripe' and raw["parameters"]["Negative prompt"] == "a car"
    assert raw["parameters"]["Seed"] == "3" and raw["parameters"]["Sampler"] and raw["info"] == drawn.image.info["parameters"]
    assert api.png_info(Image.new("RGB", (8, 8))).info == ""


def test_idle_is_no_progress(api: webuiapi.WebUIApi) -> None:
    told = api.get_progress()
    assert told["progress"] == 0 and told["state"]["job_count"] == 0 and told["current_image"] is None
    api.util_wait_for_ready(check_interval=0.01)


def test_progress_and_interrupt_while_it_draws(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    found: list[Any] = []
    long = {"prompt": "a castle", "width": 256, "height": 256, "steps": 150, "batch_size": 8}
    thread = threading.Thread(target=lambda: found.append(api.txt2img(**long)))
    thread.start()
    fleet.until(lambda: (told := watch(fleet))["progress"] > 0 and told["current_image"] is not None)
    told = watch(fleet)
    assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 1 and told["state"]["sampling_steps"] == 150
    assert Image.open(io.BytesIO(base64.b64decode(told["current_image"]))).size[0] > 0
    assert fleet.client.post("/sdapi/v1/interrupt").json() == {}
    thread.join(60)
    assert found[0].images == [] and fleet.client.get(f"/jobs/{found[0].info['job_id']}").json()["status"] == "canceled"


def watch(fleet: Fleet) -> Any:
    return fleet.client.get("/sdapi/v1/progress").json()


# What is refused, before anything is queued


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), door_wait_s=1) as live:
        yield live


def ask(live: Live, **body: Any) -> httpx2.Response:
    return live.http.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "width": 64, "height": 64, "steps": 4} | body)


@pytest.mark.parametrize(("body", "code", "param"), [
    ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "not_supported", "hr_upscaler"),
    ({"enable_hr": True, "hr_sampler_name": "Euler a"}, "not_supported", "hr_sampler_name"),
    ({"enable_hr": True, "hr_scale": 9}, "invalid_value", "hr_scale"),
    ({"enable_hr": True, "hr_resize_x": 100}, "invalid_size", "hr_resize_x"),
    ({"enable_hr": True, "denoising_strength": 0}, "invalid_value", "denoising_strength"),
    ({"restore_faces": True}, "not_supported", "restore_faces"),
    ({"tiling": True}, "not_supported", "tiling"),
    ({"subseed_strength": 0.5}, "not_supported", "subseed_strength"),
    ({"alwayson_scripts": {"ControlNet": {}}}, "not_supported", "alwayson_scripts"),
    ({"script_name": "x/y plot"}, "not_supported", "script_name"),
    ({"styles": ["anime"]}, "not_supported", "styles"),
    ({"override_settings": {"sd_vae": "x"}}, "not_supported", "override_settings"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 13}}, "invalid_value", "override_settings.CLIP_stop_at_last_layers"),
    ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, "invalid_value", "override_settings"),
    ({"override_settings": {"sd_model_checkpoint": "nothing [00]"}}, "unknown_model", "override_settings"),
    ({"override_settings": {"samples_format": "gif"}}, "invalid_value", "override_settings"),
    ({"prompt": "a [cat:dog:0.5]"}, "not_supported", "prompt"),
    ({"negative_prompt": "a [cat|dog]"}, "not_supported", "negative_prompt"),
    ({"prompt": "a cat AND a dog"}, "not_supported", "prompt"),
    ({"prompt": "a cat <hypernet:fur:1>"}, "not_supported", "prompt"),
    ({"prompt": "a (cat:1.2.3)"}, "invalid_value", "prompt"),
    ({"cfg": 3}, "unknown_field", "cfg"),
    ({"sampler_name": "DPM adaptive"}, "unknown_sampler", "sampler_name"),
    ({"sampler_name": "Eular"}, "unknown_sampler", "sampler_name"),
    ({"sampler_name": "x" * 5000}, "unknown_sampler", "sampler_name"),
    ({"scheduler": "Laplace"}, "unknown_schedule", "scheduler"),
    ({"width": 63}, "invalid_size", "width"),
    ({"steps": "many"}, "invalid_value", "steps"),
    ({"batch_size": 100}, "invalid_value", "batch_size"),
    ({"batch_size": -2, "n_iter": -2}, "invalid_value", "batch_size"),
    ({"n_iter": 0}, "invalid_value", "n_iter"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(gateway: Live, redis_url: str, body: dict[str, Any], code: str, param: str) -> None:
    answer = ask(gateway, **body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code and answer.json()["error"]["param"] == param
    message = answer.json()["error"]["message"]
    assert answer.json()["detail"] == message and len(message) < 300 and message.count("Known: ") < 2
    assert sum(depth(redis_url).values()) == 0


def test_every_field_may_be_null(gateway: Live, redis_url: str) -> None:
    nulls = ("negative_prompt", "sampler_name", "scheduler", "seed", "eta", "s_noise", "styles", "subseed", "hr_prompt", "script_args")
    assert ask(gateway, **dict.fromkeys(nulls)).status_code == 504  # nobody draws here: it was queued, and the wait is over
    assert sum(depth(redis_url).values()) == 1


def test_options_are_of_a_request_and_never_of_all(gateway: Live) -> None:
    now = gateway.http.get("/sdapi/v1/options").json()
    assert gateway.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": now["sd_model_checkpoint"]}).status_code == 200
    for change in ({"samples_format": "jpg"}, {"sd_model_checkpoint": "other"}, {"sd_vae": "x"}):
        refused = gateway.http.post("/sdapi/v1/options", json=change)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "not_supported"
    assert gateway.http.get("/sdapi/v1/options").json() == now


def test_other_addresses_are_none(gateway: Live) -> None:
    assert gateway.http.get("/sdapi/v1/interrogate").status_code == 404
    assert gateway.http.post("/sdapi/v1/png-info", json={"image": "!"}).json()["error"]["code"] == "invalid_value"


# Parts


def test_infotext_is_read_back() -> None:
    params = GenerationParams(
        prompt="a cat,\nSteps: of stone", negative_prompt="x: y", model="m", width=64, height=32, steps=9, guidance=2.5, sampler="euler",
        schedule="karras", seed=1,
    )  # fmt: skip
    found = parse(infotext(params, 1, "Euler", "abcd", "1"))
    assert found["Prompt"] == "a cat,\nSteps: of stone" and found["Negative prompt"] == "x: y"
    assert (found["Steps"], found["CFG scale"], found["Size"], found["Schedule type"]) == ("9", "2.5", "64x32", "Karras")
    for schedule in {name.id for name in A1111_SCHEDULES if name.id}:
        assert a1111("Euler", schedule_label(schedule)).schedule == schedule
    assert schedule_label("cosine") == "cosine", "which A1111 does not have"
    assert parse("only words") == {}


def test_texts_of_a_png_of_every_kind(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("latin", "é")
    chunks.add_text("packed", "long " * 100, zip=True)
    chunks.add_itxt("unicode", "ü→", lang="de", tkey="x")
    chunks.add_itxt("both", "日本 " * 50, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=chunks)
    found = texts(buffer.getvalue())
    assert found == {"latin": "é", "packed": "long " * 100, "unicode": "ü→", "both": "日本 " * 50}
    for end in (4, 20, len(buffer.getvalue()) - 5):
        with pytest.raises(ValueError):
            texts(buffer.getvalue()[:end])
    for count, length in ((1, 5_000_000), (3, 400_000)):
        bombs = [b"%d\0\0" % number + zlib.compress(b"x" * length) for number in range(count)]
        chunks = [len(bomb).to_bytes(4) + b"zTXt" + bomb + zlib.crc32(b"zTXt" + bomb).to_bytes(4) for bomb in bombs]
        with pytest.raises(ValueError, match="too long"):
            texts(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert json.dumps(found)

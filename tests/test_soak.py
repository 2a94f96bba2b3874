"""A bounded soak: 2,000 jobs of every kind on two models in one worker, with LoRAs, embeddings, ControlNets and the watermark, and what
gateway and worker hold meanwhile stays what it was.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.valkey import start, url
from tests import lora_files
from tests.fleet import Fleet
from tests.picture_samples import as_file, as_url, sample_mask, sample_picture
from tests.test_controlnet import write_net
from tests.test_embeddings import learned
from training.toy import write_toy
from workers.watermark import Watermark

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

JOBS, WARM, AT_ONCE = 2_000, 800, 24  # caches of prompts, drafts and kernels are full after `WARM` of them
GROWTH_MB = {"gateway": 5.0, "worker": 24.0}  # that the others may add: 4 and 20 kB a job, less than the smallest picture is
SAMPLERS = ("ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_sde", "unipc", "lcm", "ddpm", "dpmpp_2m_sde", "deis")
LORAS: tuple[list[dict[str, Any]], ...] = (
    [{"name": "ink"}], [{"name": "ink", "weight": -0.5}], [{"name": "film"}, {"name": "ink", "weight": 0.25}],
)  # fmt: skip
PICTURE, MASK = sample_picture(96, 64), sample_mask(96, 64)
NETS = ("canny", "depth")
TEXT, WATERMARK = "celadon!", Watermark()
SIZES = ((64, 64), (96, 64), (64, 128), (128, 96), (128, 128))


def kinds(key: str, nets: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """`key`: of an uploaded picture; `nets`: the ControlNets of the worker, if it can have any."""
    return (
        *({"controlnet": {"name": net, "image": key, "scale": 0.7}} for net in nets), {"embeddings": ["ink"]},
        {}, {"image": key, "strength": 0.6}, {"num_images": 2}, {"image": key, "mask": as_url(MASK)}, {"guidance": 1.0},
        {"image": key, "outpaint": {"left": 32, "top": 16}}, {"preview": True}, {"image": key, "kind": "variations"},
        {"upscale": {"factor": 2, "steps": 4, "strength": 0.5}}, {"image": as_url(PICTURE), "strength": 0.5, "sampler": "ddim"},
        {"image": key, "mask": as_url(MASK), "mask_padding": 8, "width": 64, "height": 64},
        {"prompt_syntax": "a1111", "prompt": "a (red:1.3) apple BREAK " + "and a blue frog, " * 30}, {"output_format": "webp"},
        {"upscale": {"factor": 1.5, "method": "latent"}},
        {"guidance_options": {"variant": "apg", "momentum": -0.5}}, {"output_format": "jpeg"},
    )  # fmt: skip


def bodies(key: str, nets: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """No two alike, in an order that mixes kinds, samplers, sizes, models and LoRAs."""
    for i, kind in enumerate(cycle(kinds(key, nets))):
        width, height = SIZES[i % len(SIZES)]
        size = {} if "image" in kind else {"width": width, "height": height}
        loras = {"loras": LORAS[i // 40 % 3]} if i % 40 == 7 else {}
        usual = {"prompt": f"a red ink apple, {i}", "sampler": SAMPLERS[i % len(SAMPLERS)], "steps": 3 + i % 3, "seed": i}
        yield usual | size | loras | {"model": ("one", "two")[i % 2]} | kind


@pytest.fixture(params=["openvino", "torch"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """A gateway and a worker, neither of them started yet."""
    made = {name: write_toy(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))}
    (tmp_path / "models.json").write_text(json.dumps({name: str(folder) for name, folder in made.items()}))
    loras = tmp_path / "loras"
    loras.mkdir()
    for seed, name in enumerate(("ink", "film")):
        lora_files.peft(loras / f"{name}.safetensors", lora_files.layers(made["one"], seed, strength=0.1))
    (tmp_path / "embeddings").mkdir()
    learned(tmp_path / "embeddings" / "ink.safetensors", 1, 2, widths=(32,))
    told = {"CELADON_MODELS": "one,two", "CELADON_LORAS": str(loras), "CELADON_BACKEND": request.param, "CELADON_WATERMARK": TEXT}
    told |= {"CELADON_EMBEDDINGS": str(tmp_path / "embeddings")}
    if request.param == "torch":  # OpenVINO has no graph of them
        for seed, net in enumerate(NETS):
            write_net(tmp_path / "nets" / net, made["one"], seed, (4, 6, 8, 8))
        told |= {"CELADON_CONTROLNETS": str(tmp_path / "nets")}
    server = start(tmp_path)
    fleet = Fleet(url(tmp_path), tmp_path, made["one"], **told)
    try:
        yield fleet
    finally:
        fleet.close()
        server.terminate()
        server.wait()


def read(data: bytes) -> str | None:
    return WATERMARK.read(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """What a process holds in memory that is its own."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell what a process holds")
def test_memory_is_flat_over_two_thousand_mixed_jobs(fleet: Fleet) -> None:
    processes = {"gateway": fleet.gateway(), "worker": fleet.worker()}
    key = fleet.client.post("/uploads", files={"file": ("a.png", as_file(PICTURE), "image/png")}).json()["key"]
    [model, _] = fleet.client.get("/models").json()
    wanted, unmarked = bodies(key, tuple(sorted(net["name"] for net in model["controlnets"]))), []

    def draw(body: dict[str, Any]) -> None:
        done = fleet.finished(fleet.submit(**body)["id"])
        if (done["error"] or {}).get("code") == "watermark_failed":  # what these models draw is noise, and little of it may not hold it
            unmarked.append(body)
            return
        assert done["status"] == "succeeded", (body, done["error"])
        assert all(read(fleet.picture(done, index)) == TEXT for index in range(len(done["images"])))

    told = []
    with ThreadPoolExecutor(AT_ONCE) as clients:
        for count in (WARM, *[200] * ((JOBS - WARM) // 200)):
            list(clients.map(draw, islice(wanted, count)))
            told.append({name: round(resident_mb(process), 1) for name, process in processes.items()})
            print(told[-1], flush=True)
    assert len(unmarked) <= JOBS // 5
    for name, most in GROWTH_MB.items():
        assert told[-1][name] - told[0][name] <= most, (name, told)

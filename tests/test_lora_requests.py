"""Which LoRAs a request may name, at each door, and that one acts through real processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.card import LoraInfo
from pipelines.params import LoraUse
from service import drafts
from service.errors import ApiError
from service.settings import Settings
from service.terms import reuse_fingerprint
from tests import lora_files
from tests.cards import card
from tests.fleet import Fleet, shared

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

HELD = (LoraInfo("ink", "aa"), LoraInfo("film", "bb"), LoraInfo("old", "", "a .pt file is a pickle, which runs code where it is read"))
CARD = card(loras=HELD)


def resolved(**said: Any) -> Any:
    return drafts.resolve(drafts.Draft(**{"prompt": "a red apple", "seed": 1} | said), CARD, Settings()).params


def test_loras_are_those_of_the_request_and_of_its_prompt() -> None:
    params = resolved(prompt="a <lora:ink:0.5> red <lora:film>apple", prompt_syntax="a1111", loras=(LoraUse("ink", 0.5),))
    assert params.worn == (("film", 1.0), ("ink", 0.5)) and params.loras == (LoraUse("ink", 0.5),)
    assert resolved(loras=(LoraUse("ink"), LoraUse("film", -2))).worn == (("film", -2), ("ink", 1.0)), "in the order of their names"
    assert resolved(prompt="<lora:ink:1>").worn == (), "plain: text"
    assert type(CARD).from_dict(CARD.to_dict()) == CARD


@pytest.mark.parametrize(("said", "code", "param"), [
    ({"loras": (LoraUse("inc"),)}, "unknown_lora", "loras"),
    ({"loras": (LoraUse("old"),)}, "unknown_lora", "loras"),
    ({"loras": (LoraUse("ink"), LoraUse("ink", 0.5))}, "invalid_value", "loras"),
    ({"loras": (LoraUse("ink"), LoraUse("ink"))}, "invalid_value", "loras"),
    ({"prompt": "<lora:inc:1>"}, "unknown_lora", "prompt"),
    ({"prompt": "<lora:ink:1:0.5>"}, "not_supported", "prompt"),
    ({"prompt": "<lora:ink:much>"}, "invalid_value", "prompt"),
    ({"prompt": "<lora:ink:11>"}, "invalid_value", "prompt"),
    ({"prompt": "<lora:ink:1> <lora:ink:2>"}, "invalid_value", "prompt"),
    ({"prompt": "<lora:ink:1>", "loras": (LoraUse("ink", 2.0),)}, "invalid_value", "loras"),
    ({"negative_prompt": "<lora:ink:1>"}, "not_supported", "negative_prompt"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_queued(said: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        resolved(**{"prompt_syntax": "a1111"} | said)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_the_message_says_what_there_is() -> None:
    with pytest.raises(ApiError, match=r"Did you mean ink\? Known: film, ink\."):
        resolved(loras=(LoraUse("inc"),))
    with pytest.raises(ApiError, match="pickle"):
        resolved(loras=(LoraUse("old"),))


def test_another_file_of_that_name_draws_another_picture() -> None:
    params = resolved(loras=(LoraUse("ink"),))
    other = card(loras=(LoraInfo("ink", "cc"), *HELD[1:]))
    assert reuse_fingerprint(params, CARD) != reuse_fingerprint(params, other)
    assert reuse_fingerprint(resolved(), CARD) == reuse_fingerprint(resolved(), other)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from training.toy import write_toy

    folder = tmp_path_factory.mktemp("fleet")
    model, loras = write_toy(folder / "toy"), folder / "loras"
    loras.mkdir()
    lora_files.kohya(Path(loras / "ink.safetensors"), lora_files.layers(model, 1, strength=0.2), alpha=3.0)
    (loras / "old.pt").write_bytes(b"pickle")
    with shared(folder, model, CELADON_LORAS=str(loras)) as fleet:
        yield fleet


def pixels(fleet: Fleet, job: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(fleet.picture(fleet.finished(job["id"])))).tobytes()


def test_a_lora_acts_on_its_job_alone(service: Fleet) -> None:
    [model] = service.client.get("/models").json()
    assert {lora["name"]: bool(lora["refused"]) for lora in model["loras"]} == {"ink": False, "old": True}
    assert [lora["name"] for lora in service.client.get("/sdapi/v1/loras").json()] == ["ink"]
    asked: dict[str, Any] = {"seed": 3, "width": 128, "height": 128, "guidance": 3.0}
    before = pixels(service, service.submit(**asked))
    jobs = [service.submit(**asked | {"loras": [{"name": "ink", "weight": 0.7}]}), service.submit(**asked, num_images=2)]
    worn, beside = (pixels(service, job) for job in jobs)
    assert beside == before != worn
    params = service.job(jobs[0]["id"])["params"]
    again = {name: params[name] for name in ("prompt", "loras", "seed", "width", "height", "guidance", "steps")}
    assert pixels(service, service.submit(**again)) == worn, "what an answer holds can be asked for"
    named = service.client.post("/sdapi/v1/txt2img", json={"prompt": "a red apple<lora:inc:1>", "width": 128, "height": 128})
    assert named.status_code == 400 and named.json()["error"]["code"] == "unknown_lora"

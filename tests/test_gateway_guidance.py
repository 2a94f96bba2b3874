"""Guidance at the gateway: defaults are filled in, what does nothing is said, what was drawn can be asked for again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cards import card
from live_gateway import Live, running

PROMPT = {"prompt": "a red apple"}


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(valkey, tmp_path_factory.mktemp("data"), card()) as live:
        yield live


def test_what_a_job_says_of_guidance_can_be_posted_again(gateway: Live) -> None:
    """With scales the guidance is the first of them; guidance that is on for some steps is no surprise."""
    for asked in (
        {"steps": 4, "guidance_options": {"scales": [4, 3, 2.5, 1], "variant": "tcfg"}},
        {"guidance": 1, "negative_prompt": "red", "guidance_options": {"curve": "cosine", "final": 4, "rescale": 0.2}},
        {"guidance": 1, "guidance_options": {"pag_scale": 3}},
        {"guidance": 1},
    ):
        first = gateway.post(PROMPT | asked).json()
        assert first["warnings"] == []
        params = first["params"]
        again = gateway.post({name: value for name, value in params.items() if name != "kind"}).json()
        assert again["params"] == params and again["warnings"] == []
        assert params["guidance"] == asked.get("guidance", 4)


@pytest.mark.parametrize(
    "asked",
    [
        {"guidance": 1, "guidance_options": {"variant": "apg"}},
        {"guidance": 1, "guidance_options": {"rescale": 0.1}},
        {"steps": 3, "guidance_options": {"start": 0.4, "end": 0.6, "seg_scale": 2}},
    ],
)
def test_options_that_no_step_uses_are_a_warning(gateway: Live, asked: dict[str, object]) -> None:
    assert [w["code"] for w in gateway.post(PROMPT | asked).json()["warnings"]] == ["guidance_options_unused"]


def test_a_variant_that_there_is_not_is_answered_with_those_there_are(gateway: Live) -> None:
    message = gateway.post(PROMPT | {"guidance_options": {"variant": "tcgf"}}).json()["error"]["message"]
    assert "Did you mean tcfg or cfg?" in message and "apg, cfg, cfg_zero_star, tcfg" in message
    message = gateway.post(PROMPT | {"guidance_options": {"variant": "apg", "etta": 1}}).json()["error"]["message"]
    assert "Did you mean eta?" in message and "momentum, norm_threshold" in message
    message = gateway.post(PROMPT | {"guidance_options": {"variant": "dynamic_thresholding"}}).json()["error"]["message"]
    assert "draws latents" in message


def test_guidances_tell_every_option_with_the_models_own_rescale(gateway: Live) -> None:
    told = {info["id"]: info["options"] for info in gateway.http.get("/guidances").json()}
    assert list(told) == ["cfg", "cfg_zero_star", "apg", "tcfg"]
    assert all(options["rescale"]["default"] == 0.7 for options in told.values())
    assert told["apg"]["momentum"]["minimum"] == -0.99 and told["cfg"]["scales"]["many"] and told["cfg"]["final"]["needs"] == "curve"

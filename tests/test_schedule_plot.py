"""Schedules as SVG, read back with a parser: titles, lines, labels, and what the gateway draws of a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from math import exp
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cards import SCHEDULES, card
from live_gateway import Live, assert_error, running
from pipelines import schedules
from pipelines.card import ScheduleInfo
from pipelines.ladder import Ladder
from service import schedule_plot
from tests.fakes import sd_ladder_config

NS = {"s": "http://www.w3.org/2000/svg"}
CURVES = {"karras": [-5.0, -2.0, 0.5, 7.0], "<simple & plain>": [-5.0, 3.0]}


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def lines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Points of each polyline in pixels."""
    found = [line.attrib["points"].split() for line in root.iterfind(".//s:polyline", NS)]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in points)] for points in found]


def test_the_lines_show_the_curves_to_scale() -> None:
    root = parsed(schedule_plot.svg(CURVES, "A model"))
    levels, logsnr = lines(root)[:2], lines(root)[2:]
    assert [len(line) for line in levels] == [len(line) for line in logsnr] == [4, 2]
    for line, curve in zip(logsnr, CURVES.values(), strict=True):
        heights = [y for _, y in line]
        scale = (heights[0] - heights[-1]) / (curve[-1] - curve[0])
        assert all(heights[0] - y == pytest.approx(scale * (value - curve[0]), abs=0.2) for y, value in zip(heights, curve, strict=True))
    assert levels[0][0][1] < levels[0][-1][1], "noise falls"
    assert all(a[0] < b[0] for line in lines(root) for a, b in pairwise(line)), "steps go to the right"


def test_the_axis_of_levels_is_sigma_over_alpha() -> None:
    """A level between two labels of the axis lies between their heights, where sigma/alpha = exp(-logSNR / 2)."""
    root = parsed(schedule_plot.svg({"one": [-2.0, 4.0]}, "m"))
    ends = [text for text in root.iterfind(".//s:text[@text-anchor='end']", NS) if float(text.attrib["x"]) < 100]  # of the left panel
    labels = {float(str(text.text)): float(text.attrib["y"]) - 4 for text in ends}
    top, bottom = (y for _, y in lines(root)[0])
    assert labels[10] < top < labels[1] and 1 < exp(1.0) < 10
    assert labels[1] < bottom < labels[0.1] and 0.1 < exp(-2.0) < 1


def test_it_says_in_words_what_it_shows() -> None:
    root = parsed(schedule_plot.svg(CURVES, "A model"))
    assert root.attrib["role"] == "img"
    ids = root.attrib["aria-labelledby"].split()
    title, desc = (root.find(f".//*[@id='{id}']") for id in ids)
    assert title is not None and title.text == "Noise schedules on A model: karras, <simple & plain>"
    assert desc is not None and "karras: from logSNR -5.00 at the first of 4 steps to 7.00" in str(desc.text)
    legend = [text.text for text in root.iterfind(".//s:text", NS)]
    assert "karras" in legend and "<simple & plain>" in legend


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast of two colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_line_can_be_seen_on_light_and_on_dark_ground_and_told_apart_without_colour() -> None:
    light, dark = schedule_plot.STYLE.split("@media(prefers-color-scheme:dark)")
    for style in (light, dark):
        ground = re.search(r"svg\{background:(#[0-9a-f]+)", style)
        colours = re.findall(r"\.c\d\{stroke:(#[0-9a-f]+)", style)
        assert ground and len(colours) == schedule_plot.MOST
        full = ground[1] if len(ground[1]) == 7 else "#" + "".join(2 * c for c in ground[1][1:])
        assert all(contrast(colour, full) > 3 for colour in colours)
    many = {str(i): [0.0, float(i)] for i in range(schedule_plot.MOST)}
    dashes = [line.attrib.get("stroke-dasharray") for line in parsed(schedule_plot.svg(many, "m")).iterfind(".//s:polyline", NS)]
    assert len(set(dashes[: schedule_plot.MOST])) == schedule_plot.MOST


@pytest.mark.parametrize("curve", [[0.0], [3.0, 3.0], [-400.0, 400.0], [0.25, 0.26]])
def test_any_curve_can_be_drawn(curve: list[float]) -> None:
    root = parsed(schedule_plot.svg({"one": curve}, "m"))
    assert all(0 <= y <= float(root.attrib["height"]) for line in lines(root) for _, y in line)


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    custom = next(info for info in schedules.catalog(Ladder.from_config(sd_ladder_config())) if info.id == "custom")
    drawn = (*SCHEDULES[1:2], ScheduleInfo(id="karras", name="Karras", curve=(-5.0, 1.0, 7.0)), custom)
    with running(valkey, Path(tmp_path_factory.mktemp("data")), card(schedules=drawn)) as live:
        yield live


def test_the_gateway_draws_what_the_worker_announced(gateway: Live) -> None:
    answer = gateway.http.get("/schedules/Karras.svg?compare=normal, karras")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("image/svg+xml")
    assert "style-src 'unsafe-inline'" in answer.headers["content-security-policy"]
    title = parsed(answer.text).find("s:title", NS)
    assert title is not None and title.text == "Noise schedules on Celadon Test: karras, linspace"
    assert len(lines(parsed(answer.text))[0]) == 3


def test_one_schedule_named_twice_is_one_line(gateway: Live) -> None:
    answer = gateway.http.get("/schedules/karras.svg?compare=Karras,karras,KARRAS")
    assert answer.status_code == 200 and len(lines(parsed(answer.text))) == 2


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("/schedules/karas.svg", "unknown_schedule", "id"),
        ("/schedules/flux.svg", "unknown_schedule", "id"),
        ("/schedules/karras.svg?compare=nothing", "unknown_schedule", "compare"),
        ("/schedules/karras.svg?rho=5", "unknown_field", "rho"),
        ("/schedules/karras.svg?model=other", "unknown_model", "model"),
        ("/schedules/custom.svg", "invalid_value", "id"),
        ("/schedules/karras.svg?compare=custom", "invalid_value", "compare"),
        ("/schedules/karras.svg?compare=", "invalid_value", "compare"),
        ("/schedules/karras.svg?compare=karras,,normal", "unknown_schedule", "compare"),
        ("/schedules/karras.svg?steps=5", "unknown_field", "steps"),
        ("/schedules/kar%00ras.svg", "unknown_schedule", "id"),
        ("/schedules/%3Csvg%3E.svg", "unknown_schedule", "id"),
        (f"/schedules/{'k' * 5000}.svg", "unknown_schedule", "id"),
        ("/schedules/custom_sigmas.svg", "invalid_value", "id"),
    ],
)
def test_what_cannot_be_drawn_is_refused(gateway: Live, path: str, code: str, param: str) -> None:
    assert_error(gateway.http.get(path), 400, code, param)

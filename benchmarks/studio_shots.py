"""Screenshots of the studio page for docs/studio.md: `python -m benchmarks.studio_shots http://127.0.0.1:7860`, with Celadon up."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import chromium

OUT = Path("docs/pictures/studio.jpg")
PROMPTS = ("a red apple", "a purple octopus", "a pencil drawing of a fish", "a frog on a pink background", "two green hearts", "a castle")


def shot(browser: Browser, url: str, scheme: str, *, draw: bool) -> Image.Image:
    """The page after these prompts and a small comparison."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1180, "height": 900})  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#state")).to_have_text("Ready", timeout=30_000)
    for number, prompt in enumerate(PROMPTS if draw else ()):
        page.fill("#seed", str(number))
        page.fill("#prompt", prompt)
        page.press("#prompt", "Control+Enter")
        page.wait_for_selector(f"#gallery img[alt='{prompt}']", timeout=60_000)
    page.fill("#prompt", "a rocket on a blue background")
    page.fill("#seed", "7")
    page.click("#compare")
    page.select_option("#axis-samplers", ["euler", "dpmpp_2m", "unipc"])
    page.fill("#axis-steps", "2, 4, 8")
    page.click("#compare-now")
    expect(page.locator("#grids td img")).to_have_count(9, timeout=120_000)
    begin_with(page, PROMPTS[0])
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")
    return Image.open(io.BytesIO(page.screenshot()))


def begin_with(page: Page, prompt: str) -> None:
    """The gallery's picture in the field, with a part of it painted."""
    page.locator("#gallery article", has_text=prompt).last.get_by_role("button", name="Begin with it").click()
    expect(page.locator("#picture-state")).to_contain_text("pixels", timeout=30_000)
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.75)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.75, steps=8)
    page.mouse.up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    args = parser.parse_args()
    with sync_playwright() as playwright, chromium(playwright) as browser:
        shots = [shot(browser, args.url, scheme, draw=scheme == "light") for scheme in ("light", "dark")]
    wide = Image.new("RGB", (sum(s.width for s in shots), shots[0].height))
    for number, picture in enumerate(shots):
        wide.paste(picture, (number * shots[0].width, 0))
    wide.resize((wide.width * 2 // 3, wide.height * 2 // 3), Image.Resampling.LANCZOS).save(OUT, quality=82)


if __name__ == "__main__":
    main()

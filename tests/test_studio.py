"""The studio page in a real Chromium, before a real gateway and a real worker with a toy model."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from keyed import make_key
from live_gateway import running
from tests.browser import chromium
from tests.cards import card
from tests.fleet import Fleet, shared
from tests.picture_samples import as_file, as_url, sample_picture
from training.toy import write_toy

expect.set_options(timeout=30_000)  # a machine that does much else is slow
pytestmark = pytest.mark.timeout(180)

PHONE = {"width": 390, "height": 800}
PICTURES = "#gallery article img"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("studio")
    with shared(folder, write_toy(folder / "toy")) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, chromium(playwright) as found:
        yield found


@pytest.fixture
def page(browser: Browser, fleet: Fleet) -> Iterator[Page]:
    """The page, ready; whatever goes wrong in it, and whatever it asks of another host, fails the test."""
    context = browser.new_context(base_url=fleet.url, permissions=["clipboard-read", "clipboard-write"])
    wrong: list[str] = []
    opened = context.new_page()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    opened.on("request", lambda request: None if request.url.startswith((fleet.url, "data:")) else wrong.append(request.url))
    opened.goto("/")
    expect(opened.locator("#state")).to_have_text("Ready")
    yield opened
    context.close()
    assert wrong == []


def draw(page: Page, prompt: str, **fields: Any) -> None:
    for name, value in ({"steps": 4, "seed": ""} | fields).items():
        page.fill(f"#{name}", str(value))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")


def pixels(page: Page, prompt: str) -> list[bytes]:
    """The newest pictures of a prompt."""
    found = page.locator(f"{PICTURES}[alt='{prompt}']")
    return [page.request.get(image.get_attribute("src") or "").body() for image in found.all()]


def latest(fleet: Fleet) -> dict[str, Any]:
    job: dict[str, Any] = fleet.client.get("/jobs?limit=1").json()["jobs"][0]
    return job


def test_a_picture_is_drawn_by_keyboard_alone_with_what_the_form_says(page: Page, fleet: Fleet) -> None:
    page.select_option("#sampler", "euler_a")
    page.select_option("#schedule", "karras")
    draw(page, "a blue hat", steps=5, seed=7, num_images=2, guidance=2.5, negative_prompt="rain")
    expect(page.locator(f"{PICTURES}[alt='a blue hat']")).to_have_count(2)
    for image in page.locator(f"{PICTURES}[alt='a blue hat']").all():
        page.wait_for_function("i => i.complete && i.naturalWidth === 128", arg=image.element_handle())
    params = latest(fleet)["params"]
    said = {"prompt": "a blue hat", "negative_prompt": "rain", "steps": 5, "seed": 7, "num_images": 2, "guidance": 2.5}
    assert said.items() <= params.items() and (params["sampler"], params["schedule"]) == ("euler_a", "karras")
    expect(page.locator("#said")).to_have_text("Done: a blue hat")


def test_a_picture_shows_while_it_forms_and_a_reload_loses_nothing(page: Page) -> None:
    page.select_option("#sampler", "heun")
    draw(page, "a slow cat", steps=150, num_images=8, width=256, height=256)
    expect(page.locator("#now article img")).to_have_attribute("src", re.compile("^data:image/"))
    assert page.locator("#now progress").evaluate("bar => bar.value > 0 && bar.value < bar.max")
    page.reload()
    expect(page.locator("#now article p").first).to_have_text("a slow cat")
    expect(page.locator("#prompt")).to_have_value("a slow cat")
    page.click("#now button")
    expect(page.locator("#gallery .bad").first).to_have_text("Canceled.")
    expect(page.locator("#nothing")).to_be_visible()


def test_the_same_again_is_the_same_and_a_variation_is_not(page: Page) -> None:
    draw(page, "a green box")
    for number, button in enumerate(("Same again", "Vary")):
        expect(page.locator(f"{PICTURES}[alt='a green box']")).to_have_count(number + 1)
        page.locator("#gallery article", has_text="a green box").last.get_by_role("button", name=button).click()
    expect(page.locator(f"{PICTURES}[alt='a green box']")).to_have_count(3)
    varied, again, first = pixels(page, "a green box")
    assert first == again != varied


def test_what_began_with_a_picture_is_drawn_again_from_it(page: Page, fleet: Fleet) -> None:
    first = fleet.finished(fleet.submit(prompt="a grey boat", image=as_url(sample_picture()), strength=0.5, seed=5)["id"])
    page.reload()
    page.locator("#gallery article", has_text="a grey boat").get_by_role("button", name="Same again").click()
    expect(page.locator(f"{PICTURES}[alt='a grey boat']")).to_have_count(2)
    again = latest(fleet)
    assert again["id"] != first["id"] and again["params"] == first["params"] | {"preview": True}
    assert fleet.picture(again) == fleet.picture(first)


def choose(page: Page, wide: int = 128, high: int = 96) -> None:
    """A picture in the field."""
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": as_file(sample_picture(wide, high))}
    page.set_input_files("#image", files=[file])  # type: ignore[list-item]
    expect(page.locator("#picture-state")).to_have_text(f"{wide} × {high} pixels")


def test_a_chosen_picture_is_drawn_upon_with_a_strength(page: Page, fleet: Fleet) -> None:
    choose(page)
    expect(page.locator("#width")).to_have_value("128")
    expect(page.locator("#height")).to_have_value("96")
    page.focus("#strength")
    for _ in range(6):
        page.keyboard.press("ArrowLeft")  # from 0.8
    expect(page.locator("#strength-is")).to_have_text("0.50")
    draw(page, "a pink boat", seed=4)
    expect(page.locator(f"{PICTURES}[alt='a pink boat']")).to_have_count(1)
    params = latest(fleet)["params"]
    assert (params["kind"], params["strength"], params["mask"], params["width"], params["height"]) == ("image_to_image", 0.5, "", 128, 96)
    other = fleet.finished(fleet.submit(prompt="a pink boat", image=as_url(sample_picture(128, 96)), strength=0.5, seed=4, steps=4)["id"])
    assert [fleet.picture(other)] == pixels(page, "a pink boat")
    page.click("#remove")
    draw(page, "a plain boat")
    expect(page.locator(f"{PICTURES}[alt='a plain boat']")).to_have_count(1)
    assert latest(fleet)["params"]["kind"] == "text_to_image"


@pytest.mark.parametrize("how", ["pointer", "keyboard"])
def test_what_is_painted_is_drawn_anew_and_the_rest_stays(page: Page, fleet: Fleet, how: str) -> None:
    choose(page, 128, 128)
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    if how == "pointer":
        box = canvas.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8, steps=5)
        page.mouse.up()
    else:
        canvas.focus()
        for _ in range(12):
            page.keyboard.press("ArrowRight")  # from the middle
        page.keyboard.down(" ")
        for _ in range(5):
            page.keyboard.press("ArrowDown")
        page.keyboard.up(" ")
    expect(page.locator("#strength-is")).to_have_text("1.00")
    draw(page, f"a hat by {how}", seed=4)
    expect(page.locator(f"{PICTURES}[alt='a hat by {how}']")).to_have_count(1)
    params = latest(fleet)["params"]
    assert params["kind"] == "inpaint" and params["mask"].startswith("in-")
    drawn = np.asarray(Image.open(io.BytesIO(pixels(page, f"a hat by {how}")[0])))
    np.testing.assert_array_equal(drawn[:, :48], sample_picture(128, 128)[:, :48])
    assert (drawn[40:90, 96:] != sample_picture(128, 128)[40:90, 96:]).any()
    page.click("#clear")
    draw(page, f"all of it, {how}")
    expect(page.locator(f"{PICTURES}[alt='all of it, {how}']")).to_have_count(1)
    assert latest(fleet)["params"]["kind"] == "image_to_image"


@pytest.mark.parametrize("meanwhile", ["removed", "painted"])
def test_while_its_mask_is_sent_a_picture_may_be_changed_or_removed(page: Page, fleet: Fleet, meanwhile: str) -> None:
    """What is drawn is what there was when it was asked for; what comes then is of the next drawing."""
    held: list[Route] = []
    choose(page, 128, 128)
    page.route("**/uploads", lambda route: held.append(route))
    canvas = page.locator("#canvas")
    canvas.click(position={"x": 5, "y": 5})
    with page.expect_request("**/uploads"):
        draw(page, f"a cap, {meanwhile}")
    if meanwhile == "removed":
        page.click("#remove")
    else:
        canvas.click(position={"x": 60, "y": 60})
    held.pop().continue_()
    expect(page.locator(f"{PICTURES}[alt='a cap, {meanwhile}']")).to_have_count(1)
    first = latest(fleet)["params"]
    assert first["kind"] == "inpaint" and page.locator("#problem").inner_text() == ""
    mask = np.asarray(Image.open(io.BytesIO(fleet.client.get(f"/uploads/{first['mask']}").content)).convert("L"))
    assert mask[2, 2] == 255 and mask[64:, 64:].max() == 0, "a click is a dot"
    page.unroute("**/uploads")
    draw(page, f"a scarf, {meanwhile}")
    expect(page.locator(f"{PICTURES}[alt='a scarf, {meanwhile}']")).to_have_count(1)
    then = latest(fleet)["params"]
    assert then["kind"] == ("text_to_image" if meanwhile == "removed" else "inpaint") and then["mask"] != first["mask"]


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(page: Page, how: str) -> None:
    page.evaluate(
        """async ([how, url]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(url.split(",")[1]), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes], "mine.png", { type: "image/png" }));
            const told = { bubbles: true, cancelable: true };
            if (how === "paste") document.body.dispatchEvent(new ClipboardEvent("paste", { ...told, clipboardData: data }));
            else document.getElementById("picture").dispatchEvent(new DragEvent("drop", { ...told, dataTransfer: data }));
        }""",
        [how, as_url(sample_picture(64, 64))],
    )
    expect(page.locator("#picture-state")).to_have_text("64 × 64 pixels")


def test_what_is_no_picture_is_said_beside_the_field(page: Page) -> None:
    page.set_input_files("#image", files=[{"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}])  # type: ignore[list-item]
    expect(page.locator("#image")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#problem")).not_to_be_empty()
    expect(page.locator("#with-picture")).to_be_hidden()


def test_the_gallery_gives_pictures_to_begin_with_and_variations(page: Page, fleet: Fleet) -> None:
    first = fleet.finished(fleet.submit(prompt="a white boat", seed=5)["id"])
    page.reload()
    article = page.locator("#gallery article", has_text="a white boat").last
    article.get_by_role("button", name="Begin with it").click()
    expect(page.locator("#picture-state")).to_have_text("128 × 128 pixels")
    draw(page, "a black boat")
    expect(page.locator(f"{PICTURES}[alt='a black boat']")).to_have_count(1)
    assert latest(fleet)["params"]["image"] == first["images"][0]["key"]
    article.get_by_role("button", name="Variation").click()
    expect(page.locator(f"{PICTURES}[alt='a white boat']")).to_have_count(2)
    params = latest(fleet)["params"]
    assert (params["kind"], params["image"]) == ("variations", first["images"][0]["key"])


def test_curl_and_python_draw_the_same_picture(page: Page, fleet: Fleet, tmp_path: Path) -> None:
    prompt = 'it\'s a "cup" of tea, $HOME \\ `ls`'
    draw(page, prompt, seed=3)
    article = page.locator("#gallery article", has_text="it's a").first
    article.get_by_role("button", name="curl").click()
    expect(page.locator("#said")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    assert shlex.split(command)[0] == "curl"
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
    by_curl = fleet.finished(latest(fleet)["id"])
    article.get_by_role("button", name="Python").click()
    page.wait_for_function("() => navigator.clipboard.readText().then(text => text.startsWith('from'))")
    subprocess.run([sys.executable, "-c", page.evaluate("navigator.clipboard.readText()")], cwd=tmp_path, check=True, timeout=60)
    (by_python,) = tmp_path.glob("*.png")
    first = page.request.get(article.locator("img").get_attribute("src") or "").body()
    assert by_curl["params"]["prompt"] == prompt
    assert first == fleet.picture(by_curl) == by_python.read_bytes()


def test_what_is_wrong_is_said_beside_its_field_before_anything_is_queued(page: Page, fleet: Fleet) -> None:
    before = latest(fleet)["id"]
    draw(page, "a red hat", steps=4, width=100)
    expect(page.locator("#width")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#width")).to_be_focused()
    expect(page.locator("#problem")).to_contain_text("multiple of")
    assert latest(fleet)["id"] == before
    page.click("#defaults")
    draw(page, "a red hat")
    expect(page.locator(f"{PICTURES}[alt='a red hat']")).to_have_count(1)
    expect(page.locator("#problem")).to_be_empty()


def test_the_cost_is_told_and_the_curve_follows_the_schedule(page: Page) -> None:
    page.fill("#prompt", "a red hat")
    expect(page.locator("#cost")).to_contain_text("of work")
    page.select_option("#schedule", "karras")
    line = page.locator("#curve path.line")
    before = line.get_attribute("d")
    page.select_option("#schedule", "exponential")
    expect(line).not_to_have_attribute("d", before or "")
    page.fill("#steps", "5")
    expect(page.locator("#curve circle")).to_have_count(6)


def test_a_comparison_fills_a_grid_with_one_seed(page: Page, fleet: Fleet) -> None:
    page.fill("#prompt", "a red box")
    page.fill("#seed", "11")
    page.click("#compare")
    page.select_option("#axis-samplers", ["euler", "heun", "dpmpp_2m"])
    page.fill("#axis-steps", "2, 3")
    page.click("#compare-now")
    expect(page.locator("#grids td img")).to_have_count(6)
    jobs = [job["params"] for job in fleet.client.get("/jobs?limit=6").json()["jobs"]]
    cells = {(params["sampler"], params["steps"]) for params in jobs}
    assert cells == {(sampler, steps) for sampler in ("euler", "heun", "dpmpp_2m") for steps in (2, 3)}
    assert {params["seed"] for params in jobs} == {11}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, {"width": 1280, "height": 900}], ids=["phone", "desk"])
def test_it_is_accessible_and_fits(page: Page, scheme: Any, size: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    page.click("#compare")
    page.click("#access summary")
    choose(page)
    draw(page, "a yellow cat")
    expect(page.locator(f"{PICTURES}[alt='a yellow cat']").first).to_be_visible()
    violations = Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_service_with_keys_asks_for_one(browser: Browser, redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), keys="required") as live:
        page = browser.new_page()
        page.goto(f"{live.url}/")
        expect(page.locator("#state")).to_have_text("This service wants an API key.")
        page.fill("#key", make_key(redis_url, "ada"))
        page.press("#key", "Enter")
        expect(page.locator("#state")).to_have_text("Ready")
        page.close()


def test_files_are_told_apart_by_their_age_and_no_other_file_is_given(fleet: Fleet) -> None:
    page = fleet.client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "script-src 'self'" in page.headers["content-security-policy"]
    assert fleet.client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert fleet.client.get("/ui/studio.js").headers["content-type"].startswith("text/javascript")
    for path in ("/ui/nothing.js", "/ui/..%2fapp.py", "/ui/%2e%2e/app.py", "/ui/"):
        answer = fleet.client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found", path

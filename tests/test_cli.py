"""The `celadon` command and the Python client, against a real service that draws with a tiny random model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from rich.console import Console

import jobs.valkey
from celadon import doctor
from celadon.client import ApiError, Client, JobFailed, Unreachable
from jobs.address import without_secret
from jobs.job_queue import JobQueue, connect
from tests.picture_samples import as_file, sample_mask, sample_picture
from tests.up_process import UpProcess, environment, eventually, up
from training.toy import write_toy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("model") / "toy", seed=5)


@pytest.fixture(scope="module")
def service(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A whole service with one worker, and a first prompt under way."""
    folder = tmp_path_factory.mktemp("service") / "data"
    with up(folder, "--first-prompt", "a [red] apple", CELADON_MODEL=str(toy), CELADON_MAX_STEPS="40") as running:
        assert running.url
        yield running


@pytest.fixture
def client(service: UpProcess) -> Iterator[Client]:
    with Client(service.url) as client:
        eventually(lambda: client.read("/workers") or None, "a worker")
        yield client


def celadon(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celadon", *arguments]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=55)


@contextlib.contextmanager
def stopped_worker(service: UpProcess) -> Iterator[None]:
    """Meanwhile every job stays in the queue."""
    worker = service.child("celadon worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def queued(service: UpProcess) -> int:
    async def depth() -> int:
        async with connect(jobs.valkey.url(service.data_dir)) as redis:
            return (await JobQueue(redis).depth())["queued"]

    return asyncio.run(depth())


def test_help_names_every_command() -> None:
    said = celadon("--help").stdout
    assert all(f" {command} " in said for command in ("up", "gateway", "worker", "generate", "doctor"))


def test_version() -> None:
    assert celadon("--version").stdout.startswith("celadon 0.")


def test_first_prompt_says_url_and_file(service: UpProcess) -> None:
    eventually(lambda: "/images/" in service.said() and service.said().endswith("\n"), f"the first picture: {service.said()}")
    url, file = (line.strip() for line in service.said().splitlines()[-2:])
    assert url.startswith(f"{service.url}/images/")
    with Image.open(file) as picture:
        assert picture.format == "PNG"
    assert httpx2.get(url).content == Path(file).read_bytes()
    assert "Ready" in service.said()


def test_generate_saves_what_was_asked_for(service: UpProcess, client: Client, tmp_path: Path) -> None:
    options = ("--steps", "3", "--seed", "11", "-n", "2", "--sampler", "ddim", "--negative", "blur", "--width", "64", "--height", "96")
    run = celadon("generate", "a blue car", "-o", str(tmp_path / "car.webp"), *options, CELADON_URL=client.url)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(tmp_path / "car-1.webp"), str(tmp_path / "car-2.webp")]
    for path in run.stdout.split():
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("WEBP", (64, 96))


def test_generate_sends_options_of_sampler_schedule_and_guidance(service: UpProcess, client: Client, tmp_path: Path) -> None:
    """A warning shows that the service has read them."""
    pair = ("--sampler", "euler", "--sampler-option", "s_noise=1.1", "--schedule", "karras", "--schedule-option", "rho=5")
    guidance = ("--guidance-option", "variant=apg", "--guidance-option", "momentum=-0.5", "--guidance-option", "end=0.5")
    run = celadon("generate", "a car", "--steps", "4", *pair, *guidance, "-o", str(tmp_path / "car.png"), CELADON_URL=client.url)
    assert run.returncode == 0, run.stderr
    assert "s_noise of euler act only where it adds noise" in " ".join(run.stderr.split())
    said = httpx2.get(f"{client.url}/jobs?limit=1").json()["jobs"][0]["params"]
    assert said["sampler_options"]["s_noise"] == 1.1 and said["schedule_options"] == {"rho": 5}
    assert {k: said["guidance_options"][k] for k in ("variant", "momentum", "end")} == {"variant": "apg", "momentum": -0.5, "end": 0.5}


def test_generate_draws_upon_a_picture_and_enlarges_it(client: Client, tmp_path: Path) -> None:
    picture, mask, out = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png"
    picture.write_bytes(as_file(sample_picture(90, 70)))
    mask.write_bytes(as_file(sample_mask(90, 70)))
    said = ("--image", str(picture), "--strength", "0.5", "--steps", "4", "-o", str(out))
    masked = celadon("generate", "a car", *said, "--mask", str(mask), "--mask-padding", "8", CELADON_URL=client.url)
    assert masked.returncode == 0, masked.stderr
    with Image.open(out) as drawn:
        assert drawn.size == (90, 70)
    larger = celadon("generate", "a car", *said, "--width", "64", "--height", "64", "--upscale", "1.5", CELADON_URL=client.url)
    assert larger.returncode == 0, larger.stderr
    with Image.open(out) as drawn:
        assert drawn.size == (96, 96)
    missing = celadon("generate", "a car", "--image", str(tmp_path / "nothing.png"), CELADON_URL=client.url)
    assert missing.returncode == 2 and "does not exist" in " ".join(missing.stderr.split())


def test_help_shows_what_stands_in_brackets() -> None:
    said = " ".join(celadon("generate", "--help", COLUMNS="200").stdout.split())
    assert "[less] and BREAK. [plain]" in said and "[the output's suffix, else png]" in said


@pytest.mark.parametrize(("options", "status", "words"), [
    (["--guidance-option", "variant"], 2, "written name=value, not 'variant'"),
    (["--guidance-option", "end=0.5", "--guidance-option", "end=0.8"], 2, "the option end is given twice"),
    (["--guidance-option", "momentum=-0.5"], 1, "momentum"),
    (["--guidance-option", "end=2"], 1, "end"),
    (["--sampler", "ddim", "--sampler-option", "s_churn=2"], 1, "eta"),
])  # fmt: skip
def test_generate_says_which_option_is_wrong(client: Client, options: list[str], status: int, words: str) -> None:
    run = celadon("generate", "a car", *options, CELADON_URL=client.url)
    assert (run.returncode, len(run.stderr.splitlines())) == (status, 1), run.stderr
    assert words in run.stderr


def test_generate_finds_the_service_of_its_data_folder(service: UpProcess, client: Client, tmp_path: Path) -> None:
    run = celadon("generate", "A Blue/Car!", "--steps", "2", "--seed", "3", "-o", f"{tmp_path}/", CELADON_DATA_DIR=str(service.data_dir))
    assert run.returncode == 0, run.stderr
    assert "starting one" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a-blue-car-3.png"]


def test_generate_writes_to_standard_output(client: Client) -> None:
    command = [sys.executable, "-m", "celadon", "generate", "a car", "-o", "-", "--steps", "2", "--format", "jpeg"]
    run = subprocess.run(command, env=environment(CELADON_URL=client.url), capture_output=True, timeout=55, check=True)
    with Image.open(io.BytesIO(run.stdout)) as picture:
        assert picture.format == "JPEG"


def test_the_same_seed_draws_the_same_picture(client: Client) -> None:
    first, second = (client.wait(client.submit("a cup", steps=3, seed=9).id) for _ in range(2))
    assert client.download(first.images[0]) == client.download(second.images[0])


def test_generate_says_what_is_wrong_in_one_line(client: Client) -> None:
    run = celadon("generate", "a car", "--steps", "41", CELADON_URL=client.url)
    assert run.returncode == 1
    assert run.stderr.startswith("✗ ")
    assert len(run.stderr.splitlines()) == 1
    assert "40" in run.stderr


def test_generate_says_where_nobody_answers() -> None:
    run = celadon("generate", "a car", CELADON_URL="http://127.0.0.1:9")
    assert run.returncode == 1
    assert "no answer from http://127.0.0.1:9" in run.stderr


def test_ctrl_c_cancels_the_job(service: UpProcess, client: Client) -> None:
    # What a shell starts in the background inherits a deaf ear for SIGINT; these tests may be such a thing.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from celadon.__main__ import main; main()"
    command = [sys.executable, "-c", hear, "generate", "a car"]
    with (
        stopped_worker(service),
        subprocess.Popen(command, env=environment(CELADON_URL=client.url), stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            eventually(lambda: queued(service) == 1, "the job in the queue")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "canceled" in said
        assert queued(service) == 0


def test_a_temporary_service_comes_and_goes(toy: Path, tmp_path: Path) -> None:
    """Its port is free, its folder temporary; nothing of it is left. It is ours alone, so that it wants no key."""
    variables = {"CELADON_MODEL": str(toy), "CELADON_DATA_DIR": str(tmp_path / "none"), "CELADON_PORT": "9", "TMPDIR": str(tmp_path)}
    variables["CELADON_KEYS"] = "required"
    run = celadon("generate", "a cup", "--steps", "2", "-o", str(tmp_path / "cup.png"), **variables)
    assert run.returncode == 0, run.stderr
    assert "starting one for this picture" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cup.png"]


def examine(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[int, str]:
    """Exit status and output of the doctor, in this process: it loads the whole model stack."""
    for name in [name for name in os.environ if name.startswith("CELADON_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = io.StringIO()
    return doctor.run(Console(file=said, width=200)), said.getvalue()


def test_doctor_finds_everything_well(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "data"
    status, said = examine(monkeypatch, CELADON_MODEL=str(toy), CELADON_DATA_DIR=str(data_dir), CELADON_PORT="0")
    assert (status, said.count("✓")) == (0, 7), said
    assert not data_dir.exists()


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    status, said = examine(
        monkeypatch,
        CELADON_MODEL=str(tmp_path),
        CELADON_DATA_DIR=str(tmp_path / "file" / "data"),
        CELADON_REDIS_URL="redis://someone:secret@127.0.0.1:9",
    )
    assert (status, said.count("✗"), said.count("→")) == (1, 3, 3), said
    assert "CELADON_MODEL" in said
    assert "secret" not in said


def test_doctor_answers_for_the_health_of_a_worker(service: UpProcess, client: Client) -> None:
    url = jobs.valkey.url(service.data_dir)
    assert celadon("doctor", "--worker", CELADON_REDIS_URL=url).returncode == 0
    nowhere = celadon("doctor", "--worker", CELADON_REDIS_URL="redis://127.0.0.1:9")
    assert (nowhere.returncode, len(nowhere.stderr.splitlines())) == (3, 1), nowhere.stderr


def test_client_tells_errors_apart(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        client.submit("a cup", steps=0)
    assert (refused.value.status, refused.value.param) == (400, "steps")
    with pytest.raises(ApiError) as unknown:
        client.get("no-such-job")
    assert unknown.value.status == 404
    with pytest.raises(Unreachable), Client("http://127.0.0.1:9") as nobody:
        nobody.get("x")
    assert not Client("http://127.0.0.1:9").ready()


def test_client_follows_a_job_and_hears_of_its_cancel(client: Client) -> None:
    job = client.submit("a cup", steps=40, num_images=8, sampler="heun")
    seen: list[tuple[int, int]] = []

    def on_progress(done: int, total: int) -> None:
        seen.append((done, total))
        if 0 < done < total:
            client.cancel(job.id)

    with pytest.raises(JobFailed) as canceled:
        client.wait(job.id, on_progress=on_progress)
    assert canceled.value.job.status == "canceled"
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]


def test_client_gives_up_waiting_in_time(service: UpProcess) -> None:
    """A stopped worker makes no progress; the deadline holds although the stream stays open."""
    with Client(service.url) as client, stopped_worker(service):
        job = client.submit("a cup")
        with pytest.raises(TimeoutError, match=job.id):
            client.wait(job.id, timeout_s=0.5)
        assert client.cancel(job.id).status == "canceled"


def test_an_idempotency_key_makes_one_job(client: Client) -> None:
    jobs = {client.submit("a cup", steps=2, idempotency_key="once").id for _ in range(3)}
    assert len(jobs) == 1


def test_a_redis_address_is_shown_without_its_secret() -> None:
    assert without_secret("redis://user:pass@host:6379/0") == "redis://host:6379/0"
    assert without_secret("unix:///run/valkey.sock") == "unix:///run/valkey.sock"


def test_an_output_that_no_format_fits_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for arguments in (["-o", str(tmp_path / "x.gif")], ["-n", "2", "-o", "-"]):
        done = celadon("generate", "a cat", *arguments, CELADON_URL="http://127.0.0.1:1")
        assert done.returncode == 1
        assert "-o" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_misspelt_setting_stops_a_worker(tmp_path: Path) -> None:
    done = celadon("worker", CELADON_REDIS_URL="redis://127.0.0.1:1/0", CELADON_SLOT="4")
    assert done.returncode == 2
    assert "CELADON_SLOT: no such setting; did you mean CELADON_SLOTS?" in done.stderr

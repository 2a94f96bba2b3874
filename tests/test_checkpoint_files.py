"""Single files in the original layout become the same model; hostile files and folders are refused, each with its code and reason."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file

from pipelines import original
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import describe
from pipelines.loading import load, load_described
from pipelines.single_file import KINDS, convert
from pipelines.sources import local, slug
from pipelines.text_to_image import generate
from pipelines.weight_files import check_finite, read_header
from tests import checkpoints
from tests.ldm_layout import write_single
from tests.test_architectures import asked

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
OPEN_CLIP = "cond_stage_model.model."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")
    return lambda name: root / name if (root / name).exists() else checkpoints.write(root / name, name)


def single(folder: Path, path: Path, **changes: Any) -> Path:
    """One file, and the configs of its odd sizes in a folder beside it."""
    told = {"clip": OPEN_CLIP} if folder.name == "sd2" else {}
    shutil.copytree(folder, path.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    return write_single(folder, path, **told, **changes)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions run in this process, which has torch already. What was converted."""
    made: list[Path] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        convert(Path(command[-2]), Path(command[-1]))
        made.append(Path(command[-2]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return made


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_single_file_is_the_same_model(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """The picture is the same to the last bit."""
    file, params = single(folders(name), tmp_path / "My Model (1).safetensors"), asked(name, steps=2)
    said = describe(file, cache=tmp_path)
    assert said.card.id == said.card.title == "My-Model-1"
    whole = load(folders(name), **CPU)
    np.testing.assert_array_equal(generate(load_described(said, **CPU), params), generate(whole, params))


@pytest.mark.slow  # it loads diffusers anew
def test_a_process_of_its_own_converts_and_tells_why_not(folders: Callable[[str], Path], tmp_path: Path) -> None:
    file = single(folders("sd1"), tmp_path / "one.safetensors", **{"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)})
    with pytest.raises(CheckpointError, match=r"out.2.bias of one.safetensors") as refused:
        local(file, tmp_path)
    assert refused.value.code == "weights_not_finite"


def test_a_file_is_converted_once_and_again_when_it_changed(folders: Callable[[str], Path], tmp_path: Path, here: list[Path]) -> None:
    file = single(folders("sd1"), tmp_path / "one.safetensors")
    first, _ = local(file, tmp_path)
    assert local(file, tmp_path)[0] == first and here == [file]
    (tmp_path / "one" / "celadon.json").write_text('{"id": "named", "defaults": {"steps": 7}}')
    second, _ = local(file, tmp_path)
    assert first != second and describe(file, cache=tmp_path).card.id == "named"


def test_another_worker_may_be_sooner_with_the_same_file(folders: Callable[[str], Path], tmp_path: Path, monkeypatch: Any) -> None:
    """Who comes second finds the folder there when it would put its own in place."""

    def late(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 1, "", "OSError: Directory not empty")

    monkeypatch.setattr("pipelines.sources.subprocess.run", late)
    assert local(single(folders("sd1"), tmp_path / "one.safetensors"), tmp_path)[0].is_dir()


@pytest.mark.usefixtures("here")
def test_weights_say_what_they_predict(folders: Callable[[str], Path], tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    card = describe(single(folders("sdxl"), tmp_path / "noob.safetensors", **marks), cache=tmp_path)
    assert card.ladder.prediction_type == "v_prediction" and card.ladder.zero_snr


def test_eight_bit_floats_are_read_as_halves(folders: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.diffusion_model.out.2.weight"
    weight = load_file(next((folders("sd1") / "unet").glob("*.safetensors")))["conv_out.weight"].to(torch.float8_e4m3fn)
    converted = tmp_path / "out"
    convert(single(folders("sd1"), tmp_path / "narrow.safetensors", **{name: weight}), converted)
    found = load_file(converted / "unet" / "diffusion_pytorch_model.safetensors")["conv_out.weight"]
    assert found.dtype == torch.float16 and torch.equal(found, weight.half())


@pytest.mark.parametrize(
    ("release", "millions"),  # of parameters, as the releases have them
    [
        ("sd1", {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06}),
        ("sd2", {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39}),
        ("sdxl", {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66}),
    ],
)
def test_the_configs_are_those_of_the_releases(tmp_path: Path, release: str, millions: dict[str, float]) -> None:
    original.write_configs(tmp_path / release, release)
    for part, wanted in millions.items():
        folder = tmp_path / release / part
        with init_empty_weights():
            kind = KINDS[part]
            module = kind(kind.config_class.from_pretrained(folder)) if "text" in part else kind.from_config(kind.load_config(folder))
        assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(wanted, abs=0.01)


def test_the_vocabulary_is_clips(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    from pipelines.tokens import Tokenizer

    original.write_configs(tmp_path, "sdxl")
    wanted = [49406, 320, 1125, 539, 320, 2368, 49407]  # "a photo of a cat" by OpenAI's tokenizer
    assert Tokenizer(tmp_path / "tokenizer", 77).pieces("a photo of a cat") == wanted[1:-1]
    for folder, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        found = CLIPTokenizer.from_pretrained(tmp_path / folder)("a photo of a cat", padding="max_length").input_ids
        assert found == wanted + [pad] * 70


def header(said: object, data: bytes = b"") -> bytes:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "weights_truncated"),
    "a pickle": (pickle.dumps({"w": 1}), "weights_truncated"),
    "an archive": (b"PK\x03\x04" + bytes(60), "weights_truncated"),
    "header beyond the end": ((1 << 62).to_bytes(8, "little"), "weights_truncated"),
    "huge header": (b"", "weights_unreadable"),  # made below: a sparse file
    "no JSON": (header(b"{"), "weights_unreadable"),
    "deep JSON": (header(b"[" * 100_000), "weights_unreadable"),
    "a list": (header([1, 2]), "weights_unreadable"),
    "no places": (header({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "weights_unreadable"),
    "a negative place": (header({"w": ONE | {"data_offsets": [-8, 0]}}, bytes(8)), "weights_unreadable"),
    "a negative shape": (header({"w": ONE | {"shape": [-2, -1]}}, bytes(8)), "weights_unreadable"),
    "a broken number": (header({"w": ONE | {"shape": [2.0]}}, bytes(8)), "weights_unreadable"),
    "an unknown type": (header({"w": ONE | {"dtype": "F12"}}, bytes(8)), "weights_unreadable"),
    "overlapping": (header({"v": ONE, "w": ONE}, bytes(8)), "weights_unreadable"),
    "more than its shape": (header({"w": ONE | {"shape": [1]}}, bytes(8)), "weights_unreadable"),
    "a hole": (header({"w": ONE | {"data_offsets": [8, 16]}}, bytes(16)), "weights_unreadable"),
    "something behind": (header({"w": ONE}, bytes(9)), "weights_unreadable"),
    "cut": (header({"w": ONE}, bytes(7)), "weights_truncated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    path, (data, code) = tmp_path / "model.safetensors", HOSTILE[name]
    path.write_bytes(data)
    if name == "huge header":
        with path.open("r+b") as file:
            file.write((200_000_000).to_bytes(8, "little"))
            file.truncate(200_000_100)
    with pytest.raises(CheckpointError) as refused:
        read_header(path)
    assert refused.value.code == code and path.name in str(refused.value)
    with pytest.raises(CheckpointError) as single:
        describe(path, cache=tmp_path)
    assert single.value.code == code


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(0), "c": torch.ones(1).bfloat16()}, tmp_path / "x.safetensors", {"format": "pt"})
    assert {n: (t.dtype, t.shape) for n, t in read_header(tmp_path / "x.safetensors").items()} == {
        "a": ("F32", (2, 3)), "b": ("F32", (0,)), "c": ("BF16", (1,)),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), torch.finfo(torch.float16).max])
def test_weights_that_are_no_numbers_are_found(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    weight = torch.zeros(1000)
    weight[777] = value
    save_file({"fine": torch.ones(3).to(dtype), "w": weight.to(dtype)}, tmp_path / "x.safetensors")
    if np.isfinite(value):
        check_finite(tmp_path / "x.safetensors")
        return
    with pytest.raises(CheckpointError, match=r"w of x\.safetensors") as refused:
        check_finite(tmp_path / "x.safetensors")
    assert refused.value.code == "weights_not_finite"


SINGLES: dict[str, tuple[dict[str, Any], str]] = {  # what is changed in a file, and how it is refused
    "a part is missing": ({"first_stage_model.decoder.conv_in.weight": None}, "weights_missing"),
    "another shape": ({"model.diffusion_model.out.2.weight": torch.zeros(4, 13, 3, 3)}, "weights_misfit"),
    "not finite": ({"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "weights_not_finite"),
}


@pytest.mark.parametrize("name", SINGLES)
def test_a_single_file_that_is_not_its_model_is_refused(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    changes, code = SINGLES[name]
    with pytest.raises(CheckpointError) as refused:
        convert(single(folders("sd1"), tmp_path / "one.safetensors", **changes), tmp_path / "out")
    assert refused.value.code == code
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []


@pytest.mark.parametrize(
    ("key", "code", "reason"),
    [
        ("lora_unet_down.lora_up.weight", "unsupported_pipeline", "a LoRA"),
        ("double_blocks.0.img_attn.qkv.weight", "unsupported_pipeline", "Flux"),
        ("model.diffusion_model.joint_blocks.0.w", "unsupported_pipeline", "Stable Diffusion 3"),
        ("first_stage_model.encoder.conv_in.weight", "unsupported_pipeline", "a VAE alone"),
        ("conditioner.embedders.0.model.token_embedding.weight", "refiner", "refiner"),
        ("anything", "unsupported_pipeline", "known here"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path: Path, key: str, code: str, reason: str) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=reason) as refused:
        describe(tmp_path / "x.safetensors", cache=tmp_path)
    assert refused.value.code == code


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.BIN"])
def test_pickles_are_refused_with_the_reason_whatever_they_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="run any code") as refused:
        describe(tmp_path / name)
    assert refused.value.code == "pickle"


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def changed(path: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | fields)) and None


def renamed(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (remove("model_index.json"), "not_diffusers"),
    "no config": (remove("vae/config.json"), "not_diffusers"),
    "no weights": (remove("unet/diffusion_pytorch_model.safetensors"), "weights_missing"),
    "pickled weights": (renamed, "pickle"),
    "cut weights": (cut, "weights_truncated"),
    "a shard outside": (write(INDEX, '{"weight_map": {"w": "../vae/diffusion_pytorch_model.safetensors"}}'), "weights_missing"),
    "an index of nothing": (write(INDEX, '{"weight_map": 3}'), "weights_unreadable"),
    "index no JSON": (write("model_index.json", "{"), "bad_config"),
    "index a list": (write("model_index.json", "[]"), "bad_config"),
    "a config without blocks": (write("vae/config.json", "{}"), "bad_config"),
    "a config of words": (write("vae/config.json", '{"block_out_channels": "many"}'), "bad_config"),
    "another pipeline": (write("model_index.json", '{"_class_name": "FluxPipeline"}'), "unsupported_pipeline"),
    "other channels": (write("unet/config.json", '{"in_channels": 7}'), "unsupported_unet"),
    "latents with means": (changed("vae/config.json", latents_mean=[0.1] * 4, latents_std=[2.0] * 4), "unsupported_vae"),
    "a broken solver": (lambda f: ((f / "solvers").mkdir(), (f / "solvers" / "x.json").write_text("{"))[0], "bad_solver"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_broken_folder_is_refused_before_any_weight_is_loaded(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    breaks, code = FOLDERS[name]
    breaks(shutil.copytree(folders("sd1"), tmp_path / "broken"))
    with pytest.raises(CheckpointError) as refused:
        describe(tmp_path / "broken")
    assert refused.value.code == code, str(refused.value)


def test_a_hub_id_is_found_in_the_cache_and_named_where_it_is_not(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `huggingface_hub` lays its cache out; nothing is asked of any network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = tmp_path / "models--somebody--little-model"
    shutil.copytree(folders("sd1"), kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    said = describe("somebody/little-model")
    assert said.card.id == "little-model" and said.card.hash == describe(folders("sd1")).card.hash
    with pytest.raises(CheckpointError, match="somebody/else: it is not in the hub's cache") as refused:
        describe("somebody/else")
    assert refused.value.code == "not_cached"


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_are_not_the_configs_are_refused_when_loaded(folders: Callable[[str], Path], tmp_path: Path, change: str) -> None:
    """The libraries would fill what is missing with random numbers."""
    for part, name in (("unet", "conv_out.weight"), ("text_encoder", "final_layer_norm.weight")):
        broken = shutil.copytree(folders("sd1"), tmp_path / f"{part}-{change}")
        [path] = (broken / part).glob("*.safetensors")
        tensors = load_file(path)
        [key] = [k for k in tensors if k.endswith(name)]
        if change == "missing":
            del tensors[key]
        else:
            tensors[key] = torch.zeros(3, *tensors[key].shape[1:])
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(CheckpointError) as refused:
            load(broken, **CPU)
        assert refused.value.code == "weights_misfit"


def test_names_become_ids() -> None:
    assert [slug(n) for n in ("sd-v1.5", "My Model: v2 (final)", "über/x", "...")] == ["sd-v1.5", "My-Model-v2-final", "ber-x", "model"]

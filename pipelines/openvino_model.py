"""The CPU backend without torch: a checkpoint's U-Net, VAE decoder and text encoder compiled by OpenVINO from its safetensors.

What was compiled is kept in a cache folder, so that the next start reads no weights. U-Net and VAE decoder run in the precision that is
asked for, the encoders of text and pictures, whose time does not matter, in float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint_folder import Described
from pipelines.conditioning import Text, Told
from pipelines.control_files import unused
from pipelines.controls import Shown
from pipelines.embeddings import Embeddings, Learned
from pipelines.graphs import clip, tiny_unet, unet, vae
from pipelines.graphs.runtime import openvino
from pipelines.graphs.weights import Changed
from pipelines.known import Pixels, Posterior
from pipelines.loras import KEPT, Kept, Loras, shapes
from pipelines.openvino_cache import Cache
from pipelines.planning import Decoding, WhenAsked, from_pixels, to_pixels
from pipelines.prompt_chunks import chunks, one_chunk, weighted
from pipelines.prompts import PLAIN, Reading, Worn, read
from pipelines.tokens import Tokenizer
from pipelines.upscaler import PART, Recipe, Upscaler, features

Array = Any
Compile = Callable[..., openvino.CompiledModel]  # of a form, what it wears, and the one size of call that it takes, if it is one
Requests = list[openvino.InferRequest]
Call = tuple[int, int, int, int]  # rows, height and width of latents, length of prompts
GRAPHS: Mapping[str, Callable[..., openvino.Model]] = {
    "unet": unet.build, "unet_remember": unet.build_remember, "unet_recall": unet.build_recall,
    "vae": vae.build, "vae_encoder": vae.build_encoder, "text_encoder": clip.build,
    PART: tiny_unet.build,
}  # fmt: skip
FOLDERS = {"vae_encoder": "vae", "unet_remember": "unet", "unet_recall": "unet"}  # of parts that are not named as their folder
CACHE_FORMAT = 7  # raised when a graph is built in another way, or what is noted of it means something else
PLAINLY = {"SNIPPETS_MODE": "DISABLE"}
LOG_VARIANCE = (-30.0, 20.0)  # what diffusers cuts it to


def fastest_precision(core: openvino.Core | None = None) -> str:
    """bfloat16 where the CPU multiplies it natively, else float32."""
    can = (core or openvino.Core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in can else "float32"


def takes(hints: Mapping[str, str]) -> bool:
    """Whether this build of OpenVINO knows these properties of a CPU."""
    core = openvino.Core()
    core.get_versions("CPU")  # loads the plugin: before, anything is taken
    try:
        core.set_property("CPU", dict(hints))
    except RuntimeError:
        return False
    return True


class Compiler:
    """Compiles parts of a checkpoint for the CPU, or takes them from the cache. `int8` rounds weights of the U-Net."""

    def __init__(
        self, said: Described, cache: Path | None, threads: int = 0, *,
        int8: bool = False, loras: Path | None = None, embeddings: Path | None = None, controlnets: Path | None = None,
    ) -> None:  # fmt: skip
        self._said, self._cache, self._threads, self._int8 = said, cache, threads, int8
        self._core = openvino.Core()
        self.kept = Cache(self._core)
        self.loras = Loras(loras, {part: shapes(said.folder / part) if loras else {} for part in ("unet", "text_encoder")})
        self.controlnets = unused(controlnets)
        self.embeddings = Embeddings(embeddings, said.text_widths, said.tokens - 2)

    def compile(self, part: str, precision: str, streams: int = 1, worn: Worn = (), call: Call | None = None) -> openvino.CompiledModel:
        """`part` is one of GRAPHS; `precision` float32 or bfloat16. What wears LoRAs is not kept on disk. A U-Net that takes one size of
        `call` alone is quicker to start. Raises NoGraph, FileNotFoundError or LoraError.
        """
        folder = FOLDERS.get(part, part)
        hints, deltas = self._hints(part, precision, streams), self.loras.deltas(folder, worn)
        path = None if deltas else self._path(part, hints, call)
        if path and (found := self.kept.take(path, hints)):
            return found
        rounding = {"int8": True} if folder == "unet" and self._int8 else {}
        model = GRAPHS[part](Changed(self._said.folder / folder, deltas), self._said.configs[folder], **rounding)
        if call:
            model.reshape(_shapes(model, call))
        compiled = self._core.compile_model(model, "CPU", hints)
        return self.kept.keep(path, hints, compiled) if path else compiled

    def forms(self, precision: str, streams: int = 1) -> Compile:
        """`compile` of a U-Net's forms, with LoRAs or without."""
        return lambda form, worn, call=None: self.compile(form, precision, streams, worn, call)

    def note(self, part: str, precision: str, streams: int = 1) -> Path | None:
        """A file beside what `compile` keeps for the same arguments, for what is true of that build alone."""
        path = self._path(part, self._hints(part, precision, streams))
        return path and path.with_suffix(".json")

    def _hints(self, part: str, precision: str, streams: int) -> dict[str, str]:
        """A small U-Net is compiled without OpenVINO's own fused kernels: those of a graph of one size and of one of any size round
        differently, and they gain nothing there. For large latents they are what keeps attention out of memory.
        """
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32", "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(streams), **({"INFERENCE_NUM_THREADS": str(self._threads)} if self._threads else {}),
        }  # fmt: skip
        return hints | (PLAINLY if FOLDERS.get(part, part) == "unet" and self._said.small and takes(PLAINLY) else {})

    def _path(self, part: str, hints: Mapping[str, str], call: Call | None = None) -> Path | None:
        if self._cache is None:
            return None
        decides = [CACHE_FORMAT, openvino.get_version(), self._said.card.hash, part, sorted(hints.items()), os.cpu_count(), processor()]
        decides += [call] if call else []
        decides += ["int8"] if FOLDERS.get(part, part) == "unet" and self._int8 else []
        return self._cache / f"{part}{'_usual' * bool(call)}-{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]}.blob"


def _shapes(model: openvino.Model, call: Call) -> dict[Any, openvino.PartialShape]:
    """The inputs of a U-Net's graph where rows, latents and prompts have one size."""
    rows, height, width, length = call
    sizes = {"x": (rows, None, height, width), "context": (rows, length)}
    shapes = {}
    for given in model.inputs:
        shapes[given] = given.get_partial_shape()
        for axis, size in enumerate(sizes.get(given.get_any_name(), (rows,))):
            if size is not None:
                shapes[given][axis] = size
    return shapes


def processor() -> str:
    """The processor's name: what is compiled for one may not run on another."""
    return str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))


class OpenVinoDenoiser:
    """A U-Net in one or more streams, each with its share of the rows. Registers are numpy arrays."""

    xp: ModuleType = array_api_compat.numpy
    device: Any = "cpu"

    def __init__(self, compile: Compile, config: Mapping[str, Any], streams: int = 1) -> None:
        """`compile` gives a form of the U-Net with LoRAs, or without any; what remembers and recalls is compiled when it is asked for."""
        self._config = config
        self._plain = {"unet": _requests(compile("unet", ()), streams)}
        self._make: Callable[[str, Worn], Requests] = lambda form, worn: _requests(compile(form, worn), streams)
        self._dressed: Kept[tuple[str, Worn], Requests] = Kept(lambda key: self._make(*key), KEPT)
        self._usual: tuple[Call, Requests] | None = None
        self._compile, self._streams = compile, streams
        self.asked_at = time.monotonic()  # last

    def upload(self, array: Array) -> Array:
        """Registers are on the host."""
        return array

    def specialize(self, latent: tuple[int, int, int], length: int) -> bool:
        """A U-Net for the calls of one guided picture of this size alone, [C, h, w] with prompts of `length` tokens, which takes a tenth
        less time there. Nothing else changes: it is not used, and the answer is False, where its bits are others. May be called while
        another thread asks the model.
        """
        rows = max(1, 2 // self._streams)
        requests = _requests(self._compile("unet", (), (rows, *latent[1:], length)), self._streams)
        general = self._plain["unet"][0].get_compiled_model().create_infer_request()
        asked = self._any(rows, latent, length)
        [found, *_] = [request.infer(asked)[0].copy() for request in requests]  # of all: a first call is slower
        same = bool(np.array_equal(found, general.infer(asked)[0]))
        self._usual = ((rows, *latent[1:], length), requests) if same else None
        return same

    def renew(self, latent: tuple[int, int, int], length: int) -> None:
        """Take the U-Net anew, from the cache where its entry is now: the same, with weights that are pages of a file. Arguments as of
        `specialize`; may be called while another thread asks the model.
        """
        requests = _requests(self._compile("unet", ()), self._streams)
        for request in requests:
            request.infer(self._any(1, latent, length))
        self._plain["unet"] = requests

    def _any(self, rows: int, latent: tuple[int, int, int], length: int) -> dict[str, Array]:
        """A call that is like any other."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, *latent), dtype=np.float32)
        context = rng.standard_normal((rows, length, self._config.get("cross_attention_dim", 1280)), dtype=np.float32)
        return self._inputs(x, np.linspace(1, 999, rows, dtype=np.float32), context, (), None)

    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *,
        worn: Worn = (), control: Shown | None = None,
    ) -> Array:  # fmt: skip
        """x [R, C, h, w], timestep [R], context [R, L, E] -> [R, C, h, w] float32. There is no graph of a model that is told more."""
        assert control is None, "there is no graph of a ControlNet"
        return self._ask("unet", worn, self._inputs(x, timestep, context, marks, told))[0]

    def remember(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *, worn: Worn = ()
    ) -> tuple[Array, Array]:
        out, deep = self._ask("unet_remember", worn, self._inputs(x, timestep, context, marks, told))
        return out, deep

    def recall(self, x: Array, timestep: Array, context: Array, deep: Array, told: Array | None = None, *, worn: Worn = ()) -> Array:
        inputs = self._inputs(x, timestep, context, (), told)
        return self._ask("unet_recall", worn, {name: inputs[name] for name in ("x", "time", "context")} | {"deep": deep})[0]

    def _inputs(self, x: Array, timestep: Array, context: Array, marks: Sequence[str], told: Array | None) -> dict[str, Array]:
        assert told is None, "there is no graph of a model that is told more"
        unmarked = None if marks else np.zeros((len(x), 1, 1), np.float32)
        return {
            "x": x, "time": unet.time_embedding(np.asarray(timestep), self._config), "context": context,
            "pag": _marked(marks, "pag") if unmarked is None else unmarked, "seg": _marked(marks, "seg") if unmarked is None else unmarked,
        }  # fmt: skip

    def _ask(self, form: str, worn: Worn, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs of a form of the U-Net, each [R, ...]; every stream takes its share of the rows."""
        self.asked_at = time.monotonic()
        requests = self._requests(form, worn)
        rows = len(inputs["x"])
        cuts = [cut for cut in np.array_split(np.arange(rows), min(rows, len(requests))) if len(cut)]
        usual = self._usual if form == "unet" and not worn else None
        started = []
        with contextlib.ExitStack() as ends:  # of all, if one fails: who is still at work takes no further call
            for place, cut in enumerate(cuts):
                part = slice(int(cut[0]), int(cut[-1]) + 1)
                given = {name: np.ascontiguousarray(value[part], np.float32) for name, value in inputs.items()}
                fits = usual and usual[0] == (len(cut), *inputs["x"].shape[2:], inputs["context"].shape[1])
                started.append((usual[1] if usual and fits else requests)[place])
                started[-1].start_async(given)
                ends.callback(started[-1].wait)
        found = [[tensor.data.copy() for tensor in request.output_tensors] for request in started]
        return found[0] if len(found) == 1 else [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _requests(self, form: str, worn: Worn) -> Requests:
        if worn:
            return self._dressed.get((form, worn))
        if form not in self._plain:
            self._plain[form] = self._make(form, ())
        return self._plain[form]


def _requests(compiled: openvino.CompiledModel, count: int) -> list[openvino.InferRequest]:
    return [compiled.create_infer_request() for _ in range(count)]


def _marked(marks: Sequence[str], kind: str) -> NDArray[np.float32]:
    return np.array([m == kind for m in marks], np.float32)[:, None, None]


class OpenVinoStages:
    """The stages of a checkpoint around its U-Net, as a worker asks for them."""

    def __init__(self, said: Described, compiler: Compiler, precision: str = "float32") -> None:
        """`precision` is that of the VAE's decoder and of what enlarges; its encoder runs once a job and stays in float32.

        Raises NoGraph, FileNotFoundError or OSError for a checkpoint that cannot be built."""
        self.card = replace(said.card, loras=compiler.loras.infos, embeddings=compiler.embeddings.infos, controlnets=compiler.controlnets)
        self.ladder = said.ladder
        self.latent_rgb, self.solvers = said.latent_rgb, said.solvers
        self._said, self._vae = said, said.configs["vae"]
        self.unet_channels = int(said.configs["unet"].get("in_channels", 4))
        self.told, self.zero_negative = Told(), False  # what is told more has no graph
        self._tokenizer = Tokenizer(said.folder / "tokenizer", said.tokens)
        self._text = compiler.compile("text_encoder", "float32").create_infer_request()
        self._texts: Kept[Worn, openvino.InferRequest] = Kept(
            lambda worn: compiler.compile("text_encoder", "float32", worn=worn).create_infer_request(), KEPT
        )
        self._decoder = compiler.compile("vae", precision).create_infer_request()
        self._compiler, self._vocabulary = compiler, int(said.configs["text_encoder"].get("vocab_size", 49408))
        self._precision = precision
        self._upscaler: Upscaler | None = None  # made when the first picture is enlarged by it
        self._encoder: openvino.InferRequest | None = None  # made when the first picture comes: most workers draw from text alone

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self._said.latent_shape(width, height)

    def tokens(self, prompt: str, reading: Reading = PLAIN) -> int:
        return sum(map(len, self._learned(reading).units(self._tokenizer.pieces)(prompt)))

    def encode(self, prompt: str | None, reading: Reading = PLAIN) -> Text:
        learned, marks = self._learned(reading), self._tokenizer.marks
        units = learned.units(self._tokenizer.pieces)
        told = [one_chunk(units(prompt or ""), marks)] if reading.syntax == "plain" else chunks(read(prompt or ""), units, marks)
        states = [self._states(c.ids, learned, reading) for c in told]
        return Text(np.concatenate([weighted(s, np.array(c.weights, np.float32)) for s, c in zip(states, told, strict=True)]))

    def _learned(self, reading: Reading) -> Learned:
        return self._compiler.embeddings.learned("text_encoder", reading.embeddings, self._vocabulary)

    def _states(self, ids: list[int], learned: Learned, reading: Reading) -> NDArray[np.float32]:
        """L ids -> [L, E]."""
        encoder = self._texts.get(reading.loras) if reading.loras else self._text
        given = learned.given(ids)
        vectors = np.zeros((1, len(ids), learned.vectors.shape[1]), np.float32)
        for place, vector in given.items():
            vectors[0, place] = vector
        inputs = {
            "ids": np.array([learned.known(ids, self._tokenizer.marks.start)], np.int32), "skip": np.array([reading.clip_skip], np.int32),
            "vectors": vectors, "learned": np.array([[[place in given] for place in range(len(ids))]]),
        }  # fmt: skip
        return np.array(encoder.infer(inputs)[0][0])

    def decode(self, latents: Array, *, exact: bool = False) -> Pixels:
        """Raises FloatingPointError where the VAE overflows."""
        decoder = self._decoder
        if exact and self._precision != "float32":  # hardly ever: nothing of it is kept
            decoder = self._compiler.compile("vae", "float32").create_infer_request()
        z = np.asarray(latents, np.float32)[None] / np.float32(self._vae.get("scaling_factor", 0.18215))
        return to_pixels(decoder.infer({0: z + np.float32(self._vae.get("shift_factor") or 0)})[0][0])

    def begin(self, latents: Array) -> Decoding:
        return WhenAsked(partial(self.decode, latents))

    def encode_picture(self, pixels: Pixels, mask: Pixels | None = None) -> Posterior:
        if self._encoder is None:
            self._encoder = self._compiler.compile("vae_encoder", "float32").create_infer_request()
        moments = self._encoder.infer({0: from_pixels(pixels, mask)[None]})[0][0]  # [2 C, h, w]
        mean, log_variance = np.split(moments, 2)
        scale, shift = np.float32(self._vae.get("scaling_factor", 0.18215)), np.float32(self._vae.get("shift_factor") or 0)
        return Posterior((mean - shift) * scale, np.exp(np.float32(0.5) * np.clip(log_variance, *LOG_VARIANCE)) * scale)

    def enlarge(self, pixels: Pixels, seed: int) -> Pixels:
        if self._upscaler is None:
            request = self._compiler.compile(PART, self._precision).create_infer_request()

            def network(x: Array, low: Array, time: float) -> Array:
                told = {"state": np.ascontiguousarray(x, np.float32), "low": low, "time": np.repeat(features(time), len(x), 0)}
                return request.infer(told)[0].copy()

            self._upscaler = Upscaler(network, Recipe.from_config(self._said.configs[PART]))
        return self._upscaler(pixels, seed)

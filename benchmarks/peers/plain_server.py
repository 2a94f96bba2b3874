"""What teams write first: FastAPI, diffusers and a lock. `python -m benchmarks.peers.plain_server MODEL PORT [THREADS]`.

One picture at a time, in eager float32, first come first served; the picture is the answer. Kept as the measure of `benchmarks.load`.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Annotated, Any

import torch
import uvicorn
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from fastapi import Body, FastAPI, Response


def build(model: str) -> FastAPI:
    """The application, its pipeline loaded."""
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    lock, app = threading.Lock(), FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"status": "ok"}

    @app.post("/generate")
    def generate(
        prompt: Annotated[str, Body()], steps: Annotated[int, Body()] = 20, guidance: Annotated[float, Body()] = 3.0,
        seed: Annotated[int, Body()] = 0,
    ) -> Response:  # fmt: skip
        with lock:
            generator = torch.Generator().manual_seed(seed)
            image = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, guidance_rescale=0.7, generator=generator).images[0]
        out = io.BytesIO()
        image.save(out, "PNG")
        return Response(out.getvalue(), media_type="image/png")

    return app


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 2)
    uvicorn.run(build(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")

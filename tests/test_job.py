"""The job record survives its way through the Redis hash, and its states are closed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobs.job import SELDOM, SERVICE_CLASSES, TERMINAL, TRANSITIONS, ImageRef, Job, JobError, JobStatus, JobWarning, Loss, Webhook
from pipelines.params import SEED_LIMIT, GenerationParams, LoraUse
from tests.job_samples import sample_job

texts = st.text(max_size=20)
times = st.floats(0, 4e9)
numbers = st.floats(allow_nan=False, allow_infinity=False)
options = st.dictionaries(texts, st.one_of(numbers, st.integers(), texts), max_size=2)
seeds = st.integers(0, SEED_LIMIT - 1)
counts = st.integers(0, 10**6)

params = st.builds(
    GenerationParams,
    prompt=texts,
    model=texts,
    width=counts,
    height=counts,
    steps=counts,
    guidance=numbers,
    sampler=texts,
    schedule=texts,
    seed=seeds,
    negative_prompt=texts,
    sampler_options=options,
    schedule_options=options,
    guidance_options=options,
    num_images=counts,
    output_format=st.sampled_from(["png", "jpeg", "webp"]),
    preview=st.booleans(),
)
images = st.builds(ImageRef, texts, counts, counts, seeds, texts)
jobs = st.builds(
    Job,
    id=texts,
    client=texts,
    params=params,
    status=st.sampled_from(JobStatus),
    priority=st.integers(-900, 900),
    created_at=times,
    started_at=st.none() | times,
    finished_at=st.none() | times,
    steps_done=counts,
    steps_total=counts,
    attempt=counts,
    failures=counts,
    worker=st.none() | st.text(min_size=1),
    cancel_requested=st.booleans(),
    images=st.lists(images, max_size=2).map(tuple),
    error=st.none() | st.builds(JobError, texts, texts, st.booleans()),
    warnings=st.lists(st.builds(JobWarning, texts, texts), max_size=2).map(tuple),
    service_class=st.sampled_from(SERVICE_CLASSES),
    deadline_at=st.none() | times,
    webhook=st.none() | st.builds(Webhook, texts, st.lists(texts, max_size=2).map(tuple)),
    predicted_s=times,
    reuse=st.booleans(),
    pauses=counts,
    losses=st.lists(st.builds(Loss, texts, counts, times), max_size=2).map(tuple),
    schema=st.integers(1, 9),
)


@given(jobs)
def test_hash_and_back(job: Job) -> None:
    record = job.to_hash()
    assert all(isinstance(value, str) for value in record.values())
    assert Job.from_hash({**record, "score": "1", "queue": "toy"}) == job


def test_every_field_of_the_record_is_written_unless_most_jobs_do_without() -> None:
    job = sample_job()
    assert set(job.to_hash()) == {f.name for f in dataclasses.fields(Job)} - SELDOM
    seldom: dict[str, Any] = {
        "image": "up/1", "mask": "up/2", "mask_feather": 4, "mask_padding": 8, "mask_content": "fill", "outpaint": {"left": 8},
        "strength": 0.5, "start": 0.25, "end": 0.75,
        "prompt_syntax": "a1111", "size_conditioning": {"crop": [8, 0]}, "clip_skip": 2, "cache_interval": 3,
        "loras": (LoraUse("ink", 0.5),), "embeddings": ("ink",), "controlnet": {"name": "lines", "image": "up/3"},
        "upscale": {"width": 128, "height": 128, "steps": 3, "strength": 0.5, "method": "latent"},
    }  # fmt: skip
    assert json.loads(job.to_hash()["params"]) == {n: v for n, v in job.params.to_dict().items() if n not in seldom}
    whole = dataclasses.replace(job, params=dataclasses.replace(job.params, **seldom))
    assert json.loads(whole.to_hash()["params"]) == json.loads(json.dumps(whole.params.to_dict()))
    assert Job.from_hash(whole.to_hash()) == whole and Job.from_hash(job.to_hash()) == job


def test_a_record_of_before_guidance_had_options_is_still_read() -> None:
    job = sample_job()
    record, params = job.to_hash(), job.params.to_dict()
    del params["guidance_options"]
    assert Job.from_hash(record | {"params": json.dumps(params)}) == job


def test_terminal_states_lead_nowhere_and_every_state_is_reachable() -> None:
    assert {status for status in JobStatus if not TRANSITIONS[status]} == TERMINAL
    assert set().union(*TRANSITIONS.values()) == set(JobStatus)

"""What the gateway may be told, all of it by environment (CELADON_*). A wrong value or a misspelt name stops the start."""

from __future__ import annotations

import difflib
import functools
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.address import parse
from jobs.stores import checked_endpoint, checked_storage

PREFIX = "CELADON_"

# Names that the other processes read. They share one environment, so these are no misspellings.
OF_WORKERS = frozenset({
    "MODEL", "MODELS", "MODEL_MEMORY_MB", "MODEL_STAY_S", "SOLVERS", "LORAS", "EMBEDDINGS", "CONTROLNETS", "BACKEND", "WEIGHTS", "STREAMS",
    "CACHE_DIR", "COMPILE", "GRAPHS", "FUSE", "OFFLOAD", "VAE_TILING", "DEVICE", "DTYPE", "SLOTS", "MAX_ROWS", "ROWS", "THREADS", "LEASE_S",
    "RENEW_S", "DRAIN_S", "CHECKPOINT_S", "CHECKPOINT_TTL_S", "CHECKPOINT_BYTES", "STALL_S", "STORE_S", "PROGRESS_S",
    "WORKER_METRICS_HOST", "WORKER_METRICS_PORT", "CHECKER", "CHECKER_THRESHOLD", "WATERMARK",
})  # fmt: skip
OF_COMMANDS = frozenset({"URL", "WORKERS", "API_KEY"})
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
LEAST_SECRET = 32  # characters


class SettingsError(Exception):
    """A CELADON_* variable is wrong. The message is one line for each of them, ready to be printed."""


class Settings(BaseSettings):
    """Frozen settings of one gateway process. Sizes are bytes, times seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    redis_url: str = Field(default="", description="as in jobs.address; empty: the embedded server of the data dir")
    shards: int = Field(default=0, ge=0, le=1024, description="of the queue; 0: six on a Cluster, else one")
    data_dir: Path = Field(default=Path(".celadon"), description="images lie in its folder `images`")
    storage: str = Field(default="", description="of pictures: s3://bucket/prefix; empty: on this machine")
    s3_endpoint: str = Field(default="", description="of an S3 that is not Amazon's")
    s3_public_endpoint: str = Field(default="", description="how clients reach it; empty: as we do")
    image_delivery: Literal["stream", "redirect"] = Field(default="stream", description="redirect: clients fetch them from S3")
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535, description="0 takes a free one")
    keys: Literal["auto", "required", "none"] = Field(default="auto", description="auto: needed unless only this machine can ask")
    published_host: str = Field(default="", description="what counts for that where a container's port is published")
    open_metrics: bool = Field(default=True, description="whether /metrics answers without a key")
    cors_origins: str = Field(default="", description="of pages in browsers that may ask, by commas")
    url_secrets: SecretStr = Field(default=SecretStr(""), description="of image URLs, by commas, the newest first; empty: in Redis")
    public_url: str = Field(default="", description="how clients reach this service; empty: the Host header of each request")
    default_model: str = Field(default="", description="of requests that name none; empty: the first by name of those announced")
    image_ttl_s: int = Field(default=3600, ge=1, le=604_800, description="how long a signed image URL is good")
    max_body_bytes: int = Field(default=262_144, ge=1024)
    max_pixels: int = Field(default=1_048_576, ge=64)
    max_steps: int = Field(default=150, ge=1, le=1000)
    max_images: int = Field(default=8, ge=1, le=64)
    max_prompt_chars: int = Field(default=2000, ge=1, le=100_000)
    max_batch_bytes: int = Field(default=16_777_216, ge=1024, description="of the body of POST /batches")
    picture_urls: Literal["none", "public", "any"] = Field(default="none", description="where pictures of jobs may be fetched from")
    max_uploads: int = Field(default=1000, ge=1, le=1_000_000, description="pictures of one client that are kept at one time")
    max_upload_pixels: int = Field(default=16_777_216, ge=64, le=16_777_216)
    max_picture_bytes: int = Field(default=16_777_216, ge=1024, description="of bodies that hold pictures: /uploads, img2img, edits, ...")
    max_batch_lines: int = Field(default=10_000, ge=1, le=100_000)
    max_queued: int = Field(default=50_000, ge=1)
    max_queued_per_client: int = Field(default=20_000, ge=1, description="of the jobs that wait")
    rate_per_s: float = Field(default=0.0, ge=0, le=1e6, description="jobs of one client per second in the long run; 0: any number")
    rate_burst: int = Field(default=20, ge=1, le=1_000_000, description="jobs that it may submit at once, after a pause")
    webhook_allow_private: bool = Field(default=False, description="whether webhooks may go to this network, and over plain http")
    max_wait_s: float = Field(default=60.0, ge=0, le=3600, description="the longest `Prefer: wait`")
    door_wait_s: float = Field(default=300.0, ge=1, le=3600, description="the longest wait for pictures behind /v1 and /sdapi")
    openai_models: Mapping[str, str] = Field(default={}, description="JSON: other names of models behind /v1, as in old clients")
    max_streams: int = Field(default=1000, ge=1, description="event streams and waits at one time")
    retention_s: int = Field(default=86_400, ge=60)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    request_drain_s: float = Field(default=20.0, ge=0, le=3600, description="how long SIGTERM waits for requests that are under way")

    @field_validator("redis_url")
    @classmethod
    def _known_address(cls, value: str) -> str:
        if value:
            parse(value)
        return value

    _storage = field_validator("storage")(checked_storage)
    _endpoints = field_validator("s3_endpoint", "s3_public_endpoint")(checked_endpoint)

    @field_validator("public_url")
    @classmethod
    def _no_tail(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in _parts(value):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin, as in https://app.example.com or http://localhost:3000")
        return value

    @field_validator("url_secrets")
    @classmethod
    def _are_secret(cls, value: SecretStr) -> SecretStr:
        if any(len(secret) < LEAST_SECRET for secret in _parts(value.get_secret_value())):
            raise ValueError(f"a secret has {LEAST_SECRET} characters at least: `openssl rand -hex 32` makes one")
        return value

    @property
    def origins(self) -> list[str]:
        return _parts(self.cors_origins)

    @property
    def signing_secrets(self) -> list[bytes]:
        return [secret.encode() for secret in _parts(self.url_secrets.get_secret_value())]

    @property
    def keys_in_force(self) -> bool:
        """Whether requests need an API key."""
        return self.keys == "required" or (self.keys == "auto" and not self.only_this_machine)

    @property
    def only_this_machine(self) -> bool:
        """Whether nobody else can reach the service: by its address, and by what is said of a proxy before it."""
        return is_loopback(self.published_host or self.host) and (not self.public_host or is_loopback(self.public_host))

    @property
    def public_host(self) -> str:
        """Of `public_url`; empty where there is none."""
        return urlsplit(self.public_url).hostname or ""

    @property
    def image_dir(self) -> Path:
        """Where pictures lie, if they lie on this machine."""
        return self.data_dir / "images"

    @model_validator(mode="after")
    def _no_unknown_names(self) -> Self:
        if faults := unknown_names(os.environ):
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _nothing_without_use(self) -> Self:
        if not self.storage and (self.s3_endpoint or self.s3_public_endpoint or self.image_delivery == "redirect"):
            raise ValueError(
                "CELADON_S3_ENDPOINT, CELADON_S3_PUBLIC_ENDPOINT and CELADON_IMAGE_DELIVERY=redirect want CELADON_STORAGE=s3://..."
            )
        return self

    @classmethod
    def from_environment(cls, **overrides: object) -> Self:
        """Settings from CELADON_* variables; `overrides` win. Raises SettingsError, one line for each variable at fault."""
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            raise SettingsError("\n".join(map(_line, error.errors(include_input=False, include_url=False)))) from None


@functools.lru_cache(maxsize=16)  # asked for with every request
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name is not looked up, since others may answer for it tomorrow."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _line(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{str(fault['loc'][0]).upper()}: {message}" if fault["loc"] else message


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each CELADON_* variable that no process reads: a misspelt limit must not be a missing limit."""
    known = {name.upper() for name in Settings.model_fields} | OF_WORKERS | OF_COMMANDS
    given = sorted(name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX))
    return [f"{PREFIX}{name}: no such setting{_nearest(name, known)}" for name in given if name not in known]


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {PREFIX}{close[0]}?" if close else ""

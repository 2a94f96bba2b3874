"""What a worker may be told, all of it by environment (CELADON_*). A wrong value stops the start and names the variable."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.address import parse
from jobs.stores import checked_endpoint, checked_storage
from workers.added import read_added
from workers.watermark_text import TEXT_BYTES, fits

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "models" / "celadon-mini"


class WorkerSettings(BaseSettings):
    """Frozen settings of one worker process. Seconds unless said."""

    model_config = SettingsConfigDict(env_prefix="CELADON_", frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: str = Field(description="Redis or Valkey, for example redis://localhost:6379/0; all forms stand in jobs.address")
    shards: int = Field(default=0, ge=0, le=1024, description="of the queue; 0: six on a Cluster, else one")
    data_dir: Path = Path(".celadon")
    storage: str = Field(default="", description="of pictures: s3://bucket/prefix; empty: the folder `images` of the data dir")
    s3_endpoint: str = Field(default="", description="of an S3 that is not Amazon's")
    model: str = str(DEFAULT_MODEL)
    models: str = Field(
        default="", description="several, by commas: sources, or names in models.json; empty: `model` and all that it names"
    )
    model_memory_mb: int = Field(default=0, ge=0, description="what the weights of the models may take together; 0: any amount")
    model_stay_s: float = Field(default=30.0, ge=0, le=86_400, description="how long a model draws at least while jobs of others wait")
    solvers: str = Field(default="", description="folder of solver files")
    loras: str = Field(default="", description="folder of LoRA files")
    controlnets: str = Field(default="", description="folder of ControlNets in diffusers layout, a folder each")
    embeddings: str = Field(default="", description="folder of files of textual inversion")
    backend: Literal["auto", "openvino", "torch"] = Field(default="auto", description="auto: torch where it sees a GPU, else OpenVINO")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: Literal["stored", "int8"] = Field(default="stored", description="int8: the U-Net's linear layers in 8 bits; OpenVINO alone")
    offload: Literal["none", "model"] = Field(
        default="none", description="model: U-Net, text encoders and VAE take turns on the GPU; torch alone"
    )
    vae_tiling: Literal["auto", "always", "never"] = Field(
        default="auto", description="large pictures through the VAE in tiles: auto where a GPU has little memory; torch alone"
    )
    compile: Literal["none", "blocks"] = Field(
        default="none", description="blocks: the U-Net's repeated blocks by torch.compile; torch alone"
    )
    graphs: Literal["auto", "off"] = Field(
        default="auto", description="auto: U-Net calls on a GPU are recorded as CUDA graphs and replayed; torch alone"
    )
    fuse: Literal["none", "qkv"] = Field(
        default="none", description="qkv: projections of the U-Net's attention in one product each, not with LoRAs; torch alone"
    )
    slots: int = Field(default=16, ge=1, le=1024, description="images in flight at once")
    max_rows: int = Field(default=32, ge=2, le=1024, description="U-Net rows of one tick at most")
    rows: int = Field(default=0, ge=0, le=256, description="rows of every U-Net call; 0 decides by measurement at start")
    threads: int = Field(default=0, ge=0, le=256, description="CPU threads of the model; 0: one a core")
    streams: int = Field(default=0, ge=0, le=256, description="OpenVINO's, which share the threads; 0 decides by measurement, once")
    cache_dir: Path | None = Field(default=None, description="compiled and converted models; <data dir>/cache")
    lease_s: float = Field(default=15.0, ge=1, le=600)
    renew_s: float = Field(default=1.0, ge=0.05, le=60, description="how often leases are renewed and cancels are read")
    drain_s: float = Field(default=1.0, ge=0, le=3600, description="how long SIGTERM waits for running jobs before it hands them on")
    checkpoint_s: float = Field(default=5.0, ge=0.1, le=3600, description="how often images in flight are saved")
    checkpoint_ttl_s: int = Field(default=3600, ge=60, description="how long a checkpoint waits for whoever goes on with it")
    checkpoint_bytes: int = Field(default=16_777_216, ge=1024, description="largest checkpoint of a job")
    progress_s: float = Field(default=0.25, ge=0.05, le=10, description="shortest time between two progress events of one job")
    stall_s: float = Field(default=600.0, ge=1, le=86_400, description="after which one tick, encoding or decoding counts as hung")
    store_s: float = Field(default=60.0, ge=0.1, le=3600, description="how long a picture may take to be encoded, and to be stored")
    worker_metrics_host: str = Field(default="127.0.0.1", description="the address of the worker's metrics")
    worker_metrics_port: int | None = Field(default=None, ge=0, le=65535, description="unset: no HTTP; 0 takes a free one, told in the log")
    webhook_allow_private: bool = Field(default=False, description="deliver webhooks to private addresses and over http, too")
    checker: str = Field(default="", description="file of the network that may withhold pictures; docs/safety.md")
    checker_threshold: float = Field(default=0.8, gt=0, le=1, description="score from which it does")
    watermark: str = Field(default="", description="text that every picture carries unseen, up to eight bytes; docs/safety.md")
    retention_s: int = Field(default=86_400, ge=60)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def caches(self) -> Path:
        """Where compiled and converted models lie."""
        return self.cache_dir or self.data_dir / "cache"

    @property
    def sources(self) -> dict[str, str]:
        """Where its models come from, by the name that was given, or by the source itself. Raises ValueError."""
        added = read_added(self.data_dir)
        if self.models:
            named = [name.strip() for name in self.models.split(",") if name.strip()]
            return {name: added.get(name, name) for name in named}
        return {self.model: self.model} | added

    _storage = field_validator("storage")(checked_storage)
    _endpoint = field_validator("s3_endpoint")(checked_endpoint)

    @property
    def folders(self) -> dict[str, Path | None]:
        """Of files that go with the models."""
        named = {"loras": self.loras, "embeddings": self.embeddings, "controlnets": self.controlnets}
        return {what: Path(folder) if folder else None for what, folder in named.items()}

    @field_validator("watermark")
    @classmethod
    def _short_text(cls, value: str) -> str:
        if value and not fits(value):
            raise ValueError(f"a watermark is a text of up to {TEXT_BYTES} bytes that prints")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_address(cls, value: str) -> str:
        parse(value)
        return value

"""How a job is to be served: what a client may say beside what is drawn. Every door builds Terms; `check` refuses what cannot be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from jobs.hook_url import check_url
from jobs.job import ServiceClass, Webhook
from pipelines.card import ModelCard
from pipelines.params import GenerationParams
from service.controlnets import net_hash
from service.drafts import Draft
from service.embeddings import vector_hashes
from service.errors import InvalidValue, WebhookRefused
from service.loras import used_hashes
from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`priority` orders a client's own jobs, `service_class` (None: what is usual for the client) jobs of all clients; `deadline_s`
    counts seconds from now."""

    priority: int = 0
    service_class: ServiceClass | None = None
    deadline_s: float | None = None
    webhook: Webhook | None = None
    reuse: bool = False


def check(terms: Terms, draft: Draft, settings: Settings) -> None:
    """Raises WebhookRefused, and InvalidValue where a picture that is another one each time is to be reused."""
    if terms.webhook and (fault := check_url(terms.webhook.url, settings.webhook_allow_private)):
        raise WebhookRefused(fault, param="webhook.url")
    if terms.reuse and draft.seed is None:
        raise InvalidValue("reuse needs a seed: without one every request draws another picture.", param="reuse")


def reuse_fingerprint(params: GenerationParams, card: ModelCard) -> str:
    """One value for requests that end in the same pictures; a model that was trained anew draws others."""
    decides = [asdict(params), card.hash, used_hashes(params.worn, card), vector_hashes(params.embeddings, card)]
    decides += [net_hash(params.controlnet["name"], card)] if params.controlnet else []
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()

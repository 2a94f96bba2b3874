"""Why the queue did not take a job, as HTTP tells it: code, Retry-After, and the RateLimit headers of the bound that was met.

The headers are those of draft-ietf-httpapi-ratelimit-headers: a policy's name with its quota `q`, its window `w` in seconds where
there is one; what remains `r`, and the seconds `t` until there may be more.
"""

from __future__ import annotations

import math

from jobs.job_queue import Admission, DeadlineUnmeetable, IdempotencyConflict, QueueFull, QuotaSpent, RateLimited
from service import errors
from service.settings import Settings
from service.terms import Terms

Refusal = QueueFull | RateLimited | QuotaSpent | DeadlineUnmeetable | IdempotencyConflict
DAY_S = 86_400


def refused(refusal: Refusal, terms: Terms, may: Admission, settings: Settings) -> errors.ApiError:
    """The error that answers a submit of a client that may so much."""
    match refusal:
        case RateLimited():
            window = math.ceil(may.burst / may.rate_per_s) if may.rate_per_s else 1
            return errors.RateLimited(headers=_bound("rate", may.burst, refusal.retry_after_s, window))
        case QuotaSpent():
            return errors.QuotaSpent(headers=_bound("pictures", may.per_day, refusal.retry_after_s, DAY_S))
        case QueueFull() if refusal.of_client:
            return errors.ClientQueueFull(headers=_bound("queued", may.max_queued, refusal.retry_after_s))
        case QueueFull():
            return errors.QueueIsFull(headers=_bound("all-queued", settings.max_queued, refusal.retry_after_s))
        case DeadlineUnmeetable():
            return deadline_unmeetable(refusal.eta_s, terms)
        case IdempotencyConflict():
            return errors.KeyReused(param="Idempotency-Key")


def deadline_unmeetable(eta_s: float, terms: Terms) -> errors.DeadlineUnmeetable:
    """`eta_s` is when the job would be done, in seconds from now."""
    message = f"The job would be done in about {eta_s:.3g} s; deadline_s is {terms.deadline_s:g}."
    return errors.DeadlineUnmeetable(message, param="deadline_s")


def _bound(policy: str, quota: int, retry_after_s: float, window_s: int | None = None) -> dict[str, str]:
    seconds = max(1, math.ceil(retry_after_s))
    window = f";w={window_s}" if window_s else ""
    return {
        "Retry-After": str(seconds),
        "RateLimit-Policy": f'"{policy}";q={quota}{window}',
        "RateLimit": f'"{policy}";r=0;t={seconds}',
    }

"""Every error that the gateway answers with: one tree, each class with its code and its status.

    ApiError                          500 internal_error
    ├── BadRequest                    400
    │   ├── InvalidJson               400 invalid_json
    │   ├── MissingField              400 missing_field
    │   ├── UnknownField              400 unknown_field
    │   ├── InvalidValue              400 invalid_value
    │   ├── InvalidSize               400 invalid_size
    │   ├── InvalidHeader             400 invalid_header
    │   ├── UnknownModel              400 unknown_model
    │   ├── UnknownSampler            400 unknown_sampler
    │   ├── UnknownSchedule           400 unknown_schedule
    │   ├── UnknownOption             400 unknown_option
    │   ├── UnknownLora               400 unknown_lora
    │   ├── UnknownEmbedding          400 unknown_embedding
    │   ├── UnknownControlNet         400 unknown_controlnet
    │   ├── WebhookRefused            400 webhook_refused
    │   ├── CorsRefused               400 cors_refused
    │   ├── InvalidBatch              400 invalid_batch
    │   ├── InvalidPicture            400 invalid_picture (and others: `service.picture_errors`)
    │   └── NotSupported              400 not_supported
    ├── KeyMissing                    401 key_missing
    ├── KeyInvalid                    401 key_invalid
    ├── BadSignature                  403 bad_signature
    ├── ClassNotAllowed               403 class_not_allowed
    ├── HostRefused                   403 host_refused
    ├── NotFound                      404 not_found
    │   ├── JobNotFound               404 job_not_found
    │   ├── ImageNotFound             404 image_not_found
    │   ├── DeliveryNotFound          404 delivery_not_found
    │   ├── BatchNotFound             404 batch_not_found
    │   ├── PictureNotFound           404 picture_not_found
    │   └── ModelNotFound             404 model_not_found
    ├── MethodNotAllowed              405 method_not_allowed
    ├── JobCanceled                   409 job_canceled
    ├── JobNotFinished                409 job_not_finished
    ├── JobNotDead                    409 job_not_dead
    ├── KeyReused                     409 idempotency_key_reused
    ├── JobExpired                    410 job_expired
    ├── BatchExpired                  410 batch_expired
    ├── LinkExpired                   410 link_expired
    ├── ImageErased                   410 image_erased
    ├── BodyTooLarge                  413 body_too_large
    ├── UnsupportedMediaType          415 unsupported_media_type
    ├── RangeNotSatisfiable           416 range_not_satisfiable
    ├── DeadlineUnmeetable            422 deadline_unmeetable
    ├── QueueIsFull                   429 queue_full
    ├── ClientQueueFull               429 client_queue_full
    ├── RateLimited                   429 rate_limited
    ├── QuotaSpent                    429 quota_spent
    ├── TooManyStreams                429 too_many_streams
    ├── QueueUnavailable              503 queue_unavailable
    │   ├── QueueOutOfMemory          503 queue_out_of_memory
    │   └── QueueReadOnly             503 queue_read_only
    ├── StorageUnavailable            503 storage_unavailable
    ├── NoModel                       503 no_model
    ├── NotReady                      503 not_ready
    ├── JobFailed                     500 job_failed
    └── StillRunning                  504 still_running

A message says what is wrong and what would be right, in words that a client may show; never prompts, paths or traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

SHOWN = 64  # characters of a client's own word that a message or `param` repeats at most


class ApiError(Exception):
    """The root. `param` names the field or header at fault, `headers` go with the answer. `retry_after_s` is for what passes."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    about: ClassVar[str] = "Something broke in the service; the request id finds it in the log."
    retry_after_s: ClassVar[int | None] = None
    names_bound: ClassVar[bool] = False  # whether RateLimit headers go with it

    def __init__(self, message: str = "", *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.message = message or self.about
        self.param = shown(param) if param else None
        self.headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {}
        self.headers.update(headers or {})
        super().__init__(self.message)


class BadRequest(ApiError):
    http_status = 400
    code = "bad_request"
    about = "The request cannot be understood."


class InvalidJson(BadRequest):
    code = "invalid_json"
    about = "The body is not strict JSON: one object in UTF-8, no NaN or Infinity, no repeated keys."


class MissingField(BadRequest):
    code = "missing_field"
    about = "A required field is missing."


class UnknownField(BadRequest):
    code = "unknown_field"
    about = "There is no such field. Nothing is accepted and ignored."


class InvalidValue(BadRequest):
    code = "invalid_value"
    about = "A value has the wrong type or lies outside its range."


class InvalidSize(BadRequest):
    code = "invalid_size"
    about = "The model cannot draw a picture of that width and height."


class InvalidHeader(BadRequest):
    code = "invalid_header"
    about = "A header has a value that is not understood."


class UnknownModel(BadRequest):
    code = "unknown_model"
    about = "No worker has announced that model."


class UnknownSampler(BadRequest):
    code = "unknown_sampler"
    about = "The model has no such sampler."


class UnknownSchedule(BadRequest):
    code = "unknown_schedule"
    about = "The model has no such schedule."


class UnknownOption(BadRequest):
    code = "unknown_option"
    about = "The sampler, schedule or guidance has no such option."


class WebhookRefused(BadRequest):
    code = "webhook_refused"
    about = "The webhook's URL is none that this service calls."


class InvalidBatch(BadRequest):
    """`lines` say of each line that cannot be drawn why."""

    code = "invalid_batch"
    about = "Lines of the batch cannot be drawn, and nothing was queued."

    def __init__(self, message: str = "", *, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message, param="lines")
        self.lines = lines


class NotSupported(BadRequest):
    code = "not_supported"
    about = "This service does not do that."


class KeyMissing(ApiError):
    http_status = 401
    code = "key_missing"
    about = "This service wants an API key: send it as Authorization: Bearer, followed by the key."


class KeyInvalid(ApiError):
    http_status = 401
    code = "key_invalid"
    about = "There is no such API key. It was never made, was revoked, or its time is over."


class ClassNotAllowed(ApiError):
    http_status = 403
    code = "class_not_allowed"
    about = "Jobs of yours may not be of that service class."


class HostRefused(ApiError):
    http_status = 403
    code = "host_refused"
    about = "Without keys this service answers to this machine alone, and not under a name of the internet."


class BadSignature(ApiError):
    http_status = 403
    code = "bad_signature"
    about = "The image URL is not signed by this service. Ask for the job again: its image URLs are."


class NotFound(ApiError):
    http_status = 404
    code = "not_found"
    about = "There is nothing at this address."


class JobNotFound(NotFound):
    code = "job_not_found"
    about = "There is no job of that id."


class ImageNotFound(NotFound):
    code = "image_not_found"
    about = "There is no image of that name."


class DeliveryNotFound(NotFound):
    code = "delivery_not_found"
    about = "There is no dead webhook delivery of that id."


class BatchNotFound(NotFound):
    code = "batch_not_found"
    about = "There is no batch of that id."


class ModelNotFound(NotFound):
    code = "model_not_found"
    about = "No worker has announced that model."


class MethodNotAllowed(ApiError):
    http_status = 405
    code = "method_not_allowed"
    about = "This address does not know that method; the Allow header lists those it knows."


class JobCanceled(ApiError):
    http_status = 409
    code = "job_canceled"
    about = "The job was canceled before it was done."


class JobNotFinished(ApiError):
    http_status = 409
    code = "job_not_finished"
    about = "The job is not finished. Cancel it, or wait for its end."


class JobNotDead(ApiError):
    http_status = 409
    code = "job_not_dead"
    about = "The job is no dead letter: only a job that was given up after its workers were lost is queued again."


class JobExpired(ApiError):
    http_status = 410
    code = "job_expired"
    about = "The job has ended, and its time of keeping is over. Its record and its images are gone."


class BatchExpired(ApiError):
    http_status = 410
    code = "batch_expired"
    about = "The batch has ended, and its time of keeping is over."


class LinkExpired(ApiError):
    http_status = 410
    code = "link_expired"
    about = "The image URL has expired. Ask for the job again: it answers with a fresh one."


class ImageErased(ApiError):
    http_status = 410
    code = "image_erased"
    about = "The image was erased, or its time of keeping is over."


class BodyTooLarge(ApiError):
    http_status = 413
    code = "body_too_large"
    about = "The request body is too large."


class UnsupportedMediaType(ApiError):
    http_status = 415
    code = "unsupported_media_type"
    about = "The body must be sent as application/json."


class RangeNotSatisfiable(ApiError):
    http_status = 416
    code = "range_not_satisfiable"
    about = "The range lies outside the image; Content-Range says how long it is."


class KeyReused(ApiError):
    http_status = 409
    code = "idempotency_key_reused"
    about = "The Idempotency-Key was used before with another body."


class DeadlineUnmeetable(ApiError):
    http_status = 422
    code = "deadline_unmeetable"
    about = "The job cannot be done by its deadline; the message says when it would be."


class QueueIsFull(ApiError):
    http_status = 429
    code = "queue_full"
    about = "The queue is full. Come again after the seconds of Retry-After."
    names_bound = True
    retry_after_s = 5


class ClientQueueFull(ApiError):
    http_status = 429
    code = "client_queue_full"
    about = "Too many jobs of yours are waiting. Come again after the seconds of Retry-After."
    names_bound = True
    retry_after_s = 5


class RateLimited(ApiError):
    http_status = 429
    code = "rate_limited"
    about = "Requests come too fast. Come again after the seconds of Retry-After."
    names_bound = True
    retry_after_s = 1


class QuotaSpent(ApiError):
    http_status = 429
    code = "quota_spent"
    about = "You have asked for as many pictures as you may in a day. Come again after the seconds of Retry-After."
    names_bound = True
    retry_after_s = 3600


class TooManyStreams(ApiError):
    http_status = 429
    code = "too_many_streams"
    about = "Too many event streams are open. Come again, or ask for the job now and then."
    retry_after_s = 5


class QueueUnavailable(ApiError):
    http_status = 503
    code = "queue_unavailable"
    about = "The queue cannot be reached at the moment. Try again, with an Idempotency-Key."
    retry_after_s = 1


class QueueOutOfMemory(QueueUnavailable):
    code = "queue_out_of_memory"
    about = "The queue's server has no memory left for another job; those inside go on. Try again later, with an Idempotency-Key."
    retry_after_s = 10


class QueueReadOnly(QueueUnavailable):
    code = "queue_read_only"
    about = "The queue's server takes no writes at the moment. Try again, with an Idempotency-Key."
    retry_after_s = 2


class StorageUnavailable(ApiError):
    http_status = 503
    code = "storage_unavailable"
    about = "The image store cannot be reached at the moment."
    retry_after_s = 5


class NoModel(ApiError):
    http_status = 503
    code = "no_model"
    about = "No worker has announced a model yet. Start one, or come again soon."
    retry_after_s = 5


class NotReady(ApiError):
    http_status = 503
    code = "not_ready"
    about = "The service would not take a job now; the message names what is missing."
    retry_after_s = 1


class JobFailed(ApiError):
    code = "job_failed"
    about = "The job failed; the message says why."


class StillRunning(ApiError):
    http_status = 504
    code = "still_running"
    about = "The pictures are not done yet. The job goes on: the same request, told as a repeat, waits for it."
    retry_after_s = 1


def shown(text: str) -> str:
    """A client's own word, short and printable enough to be sent back."""
    short = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in short)

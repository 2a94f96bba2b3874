"""Signatures of webhooks as of the Standard Webhooks specification, version 1 (HMAC-SHA256). Standard library only."""

from __future__ import annotations

import base64
import hashlib
import hmac


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`. The id, without dots, is that of `webhook-id`, the
    timestamp, in Unix seconds, that of `webhook-timestamp`."""
    digest = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def show_secret(secret: bytes) -> str:
    """The form in which receivers keep the secret and their libraries expect it."""
    return f"whsec_{base64.b64encode(secret).decode()}"

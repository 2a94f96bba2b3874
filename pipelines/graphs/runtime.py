"""OpenVINO without its telemetry: it imports that package where it is installed, and does without where it is not."""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset15 as ops  # noqa: E402

__all__ = ["openvino", "ops"]

"""Registers :class:`SnellaBackbone` and a head in mmsegmentation's MODELS, metrics in METRICS."""

from ..configs import require_mmseg

require_mmseg()

from .backbone import SnellaBackbone  # noqa: E402
from .calibration import CalibrationMetric  # noqa: E402
from .class_iou import ClassIoUMetric  # noqa: E402
from .describe import BackboneFacts, describe_backbone  # noqa: E402
from .fully_shard import SnellaFullyShard, whole_state  # noqa: E402
from .inference import build_segmentor, load_image, logits  # noqa: E402
from .linear_head import LinearHead  # noqa: E402
from .task_state import find_wrapper, find_wrappers, strip_frozen, task_state  # noqa: E402

__all__ = [
    "BackboneFacts",
    "CalibrationMetric",
    "ClassIoUMetric",
    "LinearHead",
    "SnellaBackbone",
    "SnellaFullyShard",
    "build_segmentor",
    "describe_backbone",
    "find_wrapper",
    "find_wrappers",
    "load_image",
    "logits",
    "strip_frozen",
    "task_state",
    "whole_state",
]

"""Farthest point sampling on the GPU: products, distances and picks as three Triton programs."""

from .available import Failed, kernel_reason
from .launch import GRAM_LAUNCHES, PICK_WARPS, GramLaunch, Launch, order, plan, row_length
from .op import fps_order, run

__all__ = [
    "GRAM_LAUNCHES",
    "PICK_WARPS",
    "Failed",
    "GramLaunch",
    "Launch",
    "fps_order",
    "kernel_reason",
    "order",
    "plan",
    "row_length",
    "run",
]

"""The programs as one operator, which ``torch.compile`` and CUDA graphs take as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import PruneError
from . import launch
from .available import Failed, give_up


def _order(
    features: Tensor, counts: Tensor, start: Tensor | None, mask: Tensor | None, metric: str, most: int
) -> tuple[Tensor, Tensor]:
    return launch.order(features, counts, start, mask, metric, most)


fps_order = torch.library.custom_op(
    "prune2drive::fps_order",
    _order,
    mutates_args=(),
    schema="(Tensor features, Tensor counts, Tensor? start, Tensor? mask, str metric, SymInt most)"
    " -> (Tensor order, Tensor squares)",
)
"""As `launch.order`, with the layout that `launch.plan` chooses."""


@fps_order.register_fake
def _shapes(
    features: Tensor, counts: Tensor, start: Tensor | None, mask: Tensor | None, metric: str, most: int
) -> tuple[Tensor, Tensor]:
    views, tokens, _ = features.shape
    order = features.new_empty((views, most), dtype=torch.int64)
    return order, features.new_empty((views, tokens), dtype=torch.float32)


def run(
    features: Tensor, counts: Tensor, start: Tensor | None, mask: Tensor | None, metric: str, most: int
) -> tuple[Tensor, Tensor]:
    """As `fps_order`; a failure to compile or launch is remembered for the device.

    Raises:
        Failed: with the reason.
    """
    arguments = (features, counts, start, mask, metric, most)
    if torch.compiler.is_compiling():
        return fps_order(*arguments)
    try:
        return fps_order(*arguments)
    except (torch.OutOfMemoryError, PruneError):
        raise
    except Exception as error:
        raise Failed(give_up(features.device, error)) from error

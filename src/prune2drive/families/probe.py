"""Watching one attention module from inside: its queries, keys and values, whatever kernel runs.

Stock models look their attention kernel up by name, in the config that the attention module holds. A probe
gives one module a shallow copy of its config that names a function of ours, which shows the tensors to the
observer and then runs the kernel that was named before. No class, no existing entry of a registry and no
other module's config is touched, and flash attention and sdpa stay on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError

PREFIX = "prune2drive_watch:"
"""Before the name of the kernel that really runs: models ask whether that name has "flash" in it."""

OnCall = Callable[[nn.Module, Tensor, Tensor, Tensor, Any, dict[str, Any]], None]
"""``(module, query, key, value, mask, kwargs)``: query ``(B, H, Q, d)``, key and value ``(B, Hk, K, d)`` as
the kernel gets them (rotated, key heads not repeated), the mask in the kernel's own form, ``scaling`` in
kwargs."""


class Probe:
    """Shows every call of one module's attention kernel to ``on_call``, just before the kernel runs.

    Probes on different modules are independent; on one module they nest, the last attached leaves first.
    """

    def __init__(self, module: nn.Module, on_call: OnCall) -> None:
        self.module: Any = module
        self.on_call = on_call
        self._original: Any = None
        self._watched: Any = None

    def attach(self) -> None:
        """Start watching.

        Raises:
            PruneError: the module names no kernel in a config, so it cannot be watched.
            RuntimeError: attached already.
        """
        if self._original is not None:
            raise RuntimeError("the probe is attached already")
        original: Any = getattr(self.module, "config", None)
        if not hasattr(original, "_attn_implementation_internal"):
            raise PruneError(
                f"{type(self.module).__name__} does not choose its attention kernel by a config of its own, "
                "so it cannot be watched"
            )
        # Imported late: families are named without loading any model code.
        from transformers.modeling_utils import AttentionInterface

        before = original._attn_implementation_internal or "eager"
        name = before if before.startswith(PREFIX) else PREFIX + before
        AttentionInterface.register(name, _show_and_run)
        watched: Any = copy.copy(original)
        # Past the property, which would also set the sub-configs: those are shared with the original.
        watched._attn_implementation_internal = name
        watched._prune2drive_watch = self
        self._original, self._watched = original, watched
        self.module.config = watched

    def detach(self) -> None:
        """Stop watching and give the module back its config; nothing happens if it was not watched."""
        if self._original is None:
            return
        if self.module.config is not self._watched:
            raise RuntimeError("probes on one module leave in reverse order")
        self.module.config = self._original
        self._original = self._watched = None

    def run(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]) -> Any:
        """Show a call, then make it with the module as it was before."""
        self.on_call(self.module, query, key, value, mask, kwargs)
        # Flash kernels read their own name from the module's config, so it has to be the real one meanwhile.
        self.module.config = self._original
        try:
            return self._kernel()(self.module, query, key, value, mask, **kwargs)
        finally:
            self.module.config = self._watched

    def _kernel(self) -> Any:
        """The kernel that the config names now; it may have been changed meanwhile."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager: Any = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        name = self._original._attn_implementation_internal or "eager"
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _show_and_run(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """The registered kernel: finds the probe in the module's config."""
    probe: Probe = module.config._prune2drive_watch
    return probe.run(query, key, value, attention_mask, kwargs)


@contextmanager
def watch(module: nn.Module, on_call: OnCall) -> Iterator[Probe]:
    """A probe on ``module`` for as long as the context lasts, also if it ends with an exception."""
    probe = Probe(module, on_call)
    probe.attach()
    try:
        yield probe
    finally:
        probe.detach()

"""Methods by name. A row is a promise: the module behind it is imported when the name is first used.

Other packages add methods without touching this file, by an entry point of the group
``prune2drive.methods`` (``name = "package.module:Class"``) or by `register_method`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from .errors import PruneError, did_you_mean

if TYPE_CHECKING:
    from .layer_pruners.base import LayerPruner
    from .selectors.base import Selector

ENTRY_POINTS = "prune2drive.methods"

_METHODS: dict[str, str] = {
    "tfps": "prune2drive.selectors.tfps:TFPS",
    "random": "prune2drive.selectors.random:Random",
    "stratified": "prune2drive.selectors.stratified:Stratified",
    "stride": "prune2drive.selectors.stride:Stride",
    "tfps-layer": "prune2drive.layer_pruners.tfps:TFPSLayer",
    "tfps-released": "prune2drive.layer_pruners.tfps:TFPSReleased",
    "random-layer": "prune2drive.layer_pruners.selector_at:RandomLayer",
    "stratified-layer": "prune2drive.layer_pruners.selector_at:StratifiedLayer",
    "stride-layer": "prune2drive.layer_pruners.selector_at:StrideLayer",
}


def list_methods() -> list[str]:
    """Return the names of all methods, built in and third party, sorted. Imports none of them."""
    return sorted(_targets())


def register_method(name: str, target: str) -> None:
    """Make ``method=name`` mean the class at ``target``, written "package.module:Class".

    Raises:
        PruneError: ``target`` is not of that form, or the name already means another class.
    """
    if not isinstance(target, str) or not all(target.partition(":")):
        raise PruneError(f"method {name!r}: target {target!r} is not of the form 'package.module:Class'")
    taken = _targets().get(name, target)
    if taken != target:
        raise PruneError(f"method {name!r} already means {taken}; choose another name for {target}")
    _METHODS[name] = target


def resolve_method(method: str | Selector | LayerPruner) -> Selector | LayerPruner:
    """Return the method that ``method`` names, with its default hyper-parameters; objects pass through.

    Raises:
        PruneError: unknown name, a target that cannot be imported, or an object that is no method.
    """
    from .layer_pruners.base import LayerPruner
    from .selectors.base import Selector

    if isinstance(method, Selector | LayerPruner):
        return method
    if isinstance(method, type) and issubclass(method, Selector | LayerPruner):
        raise PruneError(f"method {method.__name__} is a class; pass an object: {method.__name__}()")
    if not isinstance(method, str):
        raise PruneError(f"method {method!r} is not a name, a Selector or a LayerPruner")
    targets = _targets()
    if method not in targets:
        raise PruneError(f"unknown method {method!r}.{did_you_mean(method, targets)}")
    module, _, attribute = targets[method].partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PruneError(f"method {method!r}: cannot load {targets[method]}: {error}") from error
    found = kind()
    if not isinstance(found, Selector | LayerPruner):
        raise PruneError(f"method {method!r}: {targets[method]} is neither a Selector nor a LayerPruner")
    return found


def _targets() -> dict[str, str]:
    """Return every known name with its target; a built-in name cannot be taken over from outside."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | _METHODS

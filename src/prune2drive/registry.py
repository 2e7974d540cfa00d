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
    from .schedules.base import Schedule
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
    "divprune": "prune2drive.selectors.divprune:DivPrune",
    "cdpruner": "prune2drive.selectors.cdpruner:CDPruner",
    "scope": "prune2drive.selectors.scope:Scope",
    "st-prune": "prune2drive.selectors.stprune:STPrune",
    "visionzip": "prune2drive.selectors.visionzip:VisionZip",
    "vispruner": "prune2drive.selectors.vispruner:VisPruner",
    "holov": "prune2drive.selectors.holov:HoloV",
    "apet-select": "prune2drive.selectors.apet:ApETSelect",
    "duet-select": "prune2drive.selectors.duet:DuetSelect",
    "mvpruner-select": "prune2drive.selectors.mvpruner:MVPrunerSelect",
    "fastv": "prune2drive.layer_pruners.fastv:FastV",
    "attention-rank": "prune2drive.layer_pruners.attention_rank:AttentionRank",
    "dart": "prune2drive.layer_pruners.dart:DART",
    "pact": "prune2drive.layer_pruners.pact:PACT",
    "apet-stage": "prune2drive.layer_pruners.apet:ApETStage",
    "mvpruner-stage": "prune2drive.layer_pruners.mvpruner:MVPrunerStage",
    "sparsevlm-stage": "prune2drive.layer_pruners.sparsevlm:SparseVLMStage",
    "sparsevlm-v2-stage": "prune2drive.layer_pruners.sparsevlm:SparseVLM2Stage",
    "v2drop-stage": "prune2drive.layer_pruners.v2drop:V2DropStage",
    "pyramiddrop": "prune2drive.schedules.pyramiddrop:PyramidDrop",
    "sparsevlm": "prune2drive.schedules.sparsevlm:SparseVLM",
    "sparsevlm-v2": "prune2drive.schedules.sparsevlm:SparseVLM2",
    "v2drop": "prune2drive.schedules.v2drop:V2Drop",
    "mvpruner": "prune2drive.schedules.mvpruner:MVPruner",
    "apet": "prune2drive.schedules.apet:ApET",
    "duet": "prune2drive.schedules.duet:Duet",
    "duet-tfps": "prune2drive.schedules.duet:DuetTFPS",
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


def resolve_method(method: str | Selector | LayerPruner | Schedule) -> Selector | LayerPruner | Schedule:
    """Return the method that ``method`` names, with its default hyper-parameters; objects pass through.

    Raises:
        PruneError: unknown name, a target that cannot be imported, or an object that is no method.
    """
    from .layer_pruners.base import LayerPruner
    from .schedules.base import Schedule
    from .selectors.base import Selector

    kinds = Selector | LayerPruner | Schedule
    if isinstance(method, kinds):
        return method
    if isinstance(method, type) and issubclass(method, kinds):
        raise PruneError(f"method {method.__name__} is a class; pass an object: {method.__name__}()")
    if not isinstance(method, str):
        raise PruneError(f"method {method!r} is not a name, a Selector, a LayerPruner or a Schedule")
    targets = _targets()
    if method not in targets:
        raise PruneError(f"unknown method {method!r}.{did_you_mean(method, targets)}")
    module, _, attribute = targets[method].partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PruneError(f"method {method!r}: cannot load {targets[method]}: {error}") from error
    found = kind()
    if not isinstance(found, kinds):
        raise PruneError(
            f"method {method!r}: {targets[method]} is neither a Selector nor a LayerPruner nor a Schedule"
        )
    return found


def resolve_single(method: str | Selector | LayerPruner | Schedule, where: str) -> Selector | LayerPruner:
    """`resolve_method` for a place that needs a method of one stage; ``where`` names that place.

    Raises:
        PruneError: as `resolve_method`, or a schedule.
    """
    from .schedules.base import Schedule

    found = resolve_method(method)
    if isinstance(found, Schedule):
        raise PruneError(
            f"{found.name} works in several stages, {where} takes a method of one; "
            "prune2drive compare takes both"
        )
    return found


def _targets() -> dict[str, str]:
    """Return every known name with its target; a built-in name cannot be taken over from outside."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | _METHODS

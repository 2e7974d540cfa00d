"""Model families by ``config.model_type``. A new family is one file and one line here."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from ..errors import PruneError, did_you_mean
from .base import Family
from .remote import RemoteFamily, find_remote

FAMILIES: dict[str, str] = {
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_onevision": "llava_onevision:LlavaOnevision",
    "internvl": "internvl:InternVL",
    "qwen2_vl": "qwen_vl:QwenVL",
    "qwen2_5_vl": "qwen_vl:QwenVL",
    "qwen3_vl": "qwen_vl:QwenVL",
    "idefics3": "idefics3:Idefics3",
    "smolvlm": "idefics3:Idefics3",
    "gemma3": "gemma3:Gemma3",
    "paligemma": "paligemma:PaliGemma",
    "ovis2": "ovis2:Ovis2",
    "mistral3": "mistral3:Mistral3",
    "aya_vision": "aya_vision:AyaVision",
}
"""Loaded when a model of that type is pruned, so that naming a family imports no model code."""


def list_families() -> list[str]:
    """Model types that `prune2drive.prune` takes, as in ``model.config.model_type``."""
    return sorted(FAMILIES)


def find_family(model: nn.Module) -> Family | RemoteFamily:
    """The family of a model, bound to it.

    Raises:
        PruneError: no family serves this model type, or the model has no visual tokens.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)
    if (remote := find_remote(model)) is not None:
        return remote
    if kind not in FAMILIES:
        raise PruneError(
            f"{type(model).__name__} (model_type {kind!r}) has no visual "
            "tokens that prune2drive knows how to "
            f"prune.{did_you_mean(kind, FAMILIES)} A model outside this "
            "list attaches if it looks like one of "
            "prune2drive.families.remote."
        )
    module, name = FAMILIES[kind].split(":")
    family: type[Family] = getattr(import_module(f".{module}", __package__), name)
    complete = hasattr(model, "generate") and getattr(model, "base_model", model) is not model
    if not complete or not hasattr(model.base_model, "get_image_features"):
        raise PruneError(
            f"{type(model).__name__} is not a whole vision-language "
            "model; load its ...ForConditionalGeneration class "
            "(AutoModelForImageTextToText)"
        )
    return family(model)

"""Published model sizes as plain data, and models of those sizes with random weights.

What a forward pass costs depends on sizes and token counts, not on what the weights know. So speed,
memory and FLOPs of a published model can be measured without downloading it. Sources: the
``config.json`` each checkpoint publishes; the Prune2Drive paper (arXiv 2508.13305) for the token
counts per camera of its two driving models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError, did_you_mean

_SO400M: dict[str, Any] = {
    # The released models read the 26th of 27 layers; the last one is not part of their weights.
    "model_type": "siglip_vision_model",
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
_CLIP_L336: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_INTERNVIT_300M: dict[str, Any] = {
    "model_type": "internvl_vision",
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
}  # fmt: skip
_QWEN25_VIT: dict[str, Any] = {
    "model_type": "qwen2_5_vl_vision",
    "hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_TINY_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 378, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip

_QWEN2_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 152000, "tie_word_embeddings": True,
    "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
_QWEN2_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152128, "tie_word_embeddings": False,
    "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
_VICUNA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32064, "tie_word_embeddings": False,
    "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
_INTERNLM25_7B: dict[str, Any] = {
    # InternLM2 is Llama with a packed q/k/v matrix. Its dynamic rope scaling starts beyond 32,768
    # positions, which no shape here reaches.
    "model_type": "llama",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 92553, "tie_word_embeddings": False,
    "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
_LLAMA31_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_QWEN25_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_5_vl_text",
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
_TINY_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 32000, "tie_word_embeddings": True,
    "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One published size.

    ``rows``: sequence rows one camera picture takes, structure rows (newline) included.
    ``parameters``: the size its authors or its model card state, in parameters; None if none is.
    ``grid``: patches (rows, columns) of one camera picture, for towers that take any size.
    ``tiles``: squares one camera picture is cut into, thumbnail included.
    """

    model_type: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    rows: int
    about: str
    parameters: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    tiles: int = 1


SHAPES: dict[str, Shape] = {
    "demo": Shape(
        "llava_onevision", _TINY_SIGLIP, _TINY_QWEN2, 730, "small, runs in seconds on two CPU cores",
        extra={"image_token_index": 31999, "video_token_index": 31998},
    ),
    "llava-onevision-0.5b": Shape(
        "llava_onevision", _SO400M, _QWEN2_05B, 730, "SigLIP-so400m-384 + Qwen2-0.5B", 0.9e9
    ),
    "llava-onevision-7b": Shape(
        "llava_onevision", _SO400M, _QWEN2_7B, 730, "SigLIP-so400m-384 + Qwen2-7B", 8.03e9
    ),
    "llava-1.5-7b": Shape("llava", _CLIP_L336, _VICUNA_7B, 576, "CLIP-L/336 + Vicuna-7B", 7.06e9),
    "internvl2.5-8b": Shape(
        "internvl", _INTERNVIT_300M, _INTERNLM25_7B, 256, "InternViT-300M-448 + InternLM2.5-7B", 8.08e9,
        extra={"image_token_id": 92546, "tie_word_embeddings": False},
    ),
    "internvl2.5-8b-tiled": Shape(
        # A 16:9 picture is cut into 3 x 2 tiles, a thumbnail follows: 7 x 256 tokens.
        "internvl", _INTERNVIT_300M, _INTERNLM25_7B, 1792, "InternVL2.5-8B, seven tiles a picture", 8.08e9,
        extra={"image_token_id": 92546, "tie_word_embeddings": False}, tiles=7,
    ),
    "qwen2.5-vl-7b": Shape(
        # A 1600x900 picture is resized to 1596x896, multiples of 28: 57 x 32 merged tokens.
        "qwen2_5_vl", _QWEN25_VIT, _QWEN25_VL_7B, 1824, "window-attention ViT + Qwen2.5-7B", 8.29e9,
        grid=(64, 114),
    ),
    "drivemm": Shape(
        "llava_onevision", _SO400M, _LLAMA31_8B, 730, "SigLIP-so400m-384 + Llama-3.1-8B",
        # The released fork marks images with -200, which is no token; two reserved ids stand in.
        extra={"image_token_index": 128255, "video_token_index": 128254},
    ),
}  # fmt: skip


def shape(name: str) -> Shape:
    """Return the published size called ``name``. Raises PruneError naming the nearest known one."""
    if name not in SHAPES:
        raise PruneError(f"No model size is called {name!r}.{did_you_mean(name, SHAPES)}")
    return SHAPES[name]


def build_config(name: str, layers: int | None = None) -> Any:
    """Return the transformers config object of a published size, without any download.

    ``layers`` cuts the language model (not the vision tower) to its first layers, for machines that
    cannot hold the whole. Raises PruneError for an unknown name or a layer count out of range.
    """
    from transformers import AutoConfig

    s = shape(name)
    text = dict(s.text)
    if layers is not None:
        if not 1 <= layers <= text["num_hidden_layers"]:
            raise PruneError(f"layers={layers}: {name!r} has layers 1 to {text['num_hidden_layers']}.")
        text["num_hidden_layers"] = layers
    extra = {"tie_word_embeddings": text["tie_word_embeddings"], **s.extra}
    # A copy of every nested value: config classes keep and change the objects they are given.
    text["rope_parameters"] = dict(text["rope_parameters"])
    return AutoConfig.for_model(s.model_type, vision_config=dict(s.vision), text_config=text, **extra)


def build_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attn: str = "sdpa",
    *,
    layers: int | None = None,
    seed: int = 0,
) -> Any:
    """Return a published size with random weights, in eval mode, on ``device`` (``"meta"`` is fine).

    ``attn``: ``sdpa``, ``eager`` or ``flash_attention_2``. ``layers`` as in `build_config`.
    The same seed, dtype and device type give the same weights.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    config = build_config(name, layers)
    # Buffers (rotary frequencies, position indices) are computed for real; only the parameters,
    # which take the time, are left empty and filled below.
    with torch.device(device), no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
    model.tie_weights()  # part of the weight initialisation that was skipped
    if torch.device(device).type != "meta":
        fill_weights(model, seed)
    return model.eval()


@torch.no_grad()
def fill_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter in place so that activations of any depth stay finite.

    Norm weights 1, biases 0, layer scales 0.1, everything else uniform with standard deviation 0.02
    (uniform numbers are several times cheaper than normal ones, and no cost depends on which).
    """
    generators: dict[torch.device, torch.Generator] = {}
    bound = 0.02 * 3**0.5
    for path, tensor in model.named_parameters():
        leaf = path.rpartition(".")[2]
        if leaf == "bias":
            tensor.zero_()
        elif leaf == "weight" and tensor.dim() == 1:
            tensor.fill_(1.0)
        elif leaf.startswith("lambda_"):
            tensor.fill_(0.1)
        else:
            if tensor.device not in generators:
                generators[tensor.device] = torch.Generator(tensor.device).manual_seed(seed)
            tensor.uniform_(-bound, bound, generator=generators[tensor.device])


def build_inputs(
    name: str,
    batch: int = 1,
    cameras: int = 6,
    text_tokens: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return what a processor would give for ``cameras`` pictures and ``text_tokens`` text tokens.

    Every picture is led in by a few text tokens, the rest of the text follows the last picture:
    ``input_ids`` and ``attention_mask`` int64 ``(batch, cameras * rows + text_tokens)``. Pixels are
    noise of the model's dtype; pictures come sample by sample. Nothing is padded.

    Raises PruneError where the text is too short to separate the pictures, and for a single picture
    of a model that would cut it into tiles.
    """
    s, config = shape(name), build_config(name)
    if batch < 1 or cameras < 1:
        raise PruneError(f"batch={batch}, cameras={cameras}: both must be at least 1.")
    if text_tokens <= cameras:
        raise PruneError(f"text_tokens={text_tokens}: {cameras} cameras need at least {cameras + 1}.")
    if s.model_type == "llava_onevision" and cameras == 1:
        raise PruneError(f"{name!r} cuts a single picture into tiles; give at least 2 cameras.")

    on_meta = torch.device(device).type == "meta"
    generator = None if on_meta else torch.Generator(device).manual_seed(seed)
    lead = max(1, min(8, text_tokens // (2 * cameras)))
    is_image = torch.zeros(cameras * (lead + s.rows) + text_tokens - cameras * lead, dtype=torch.bool)
    for c in range(cameras):
        start = c * (lead + s.rows) + lead
        is_image[start : start + s.rows] = True
    is_image = is_image.to(device).expand(batch, -1)
    # Ids 100 to 999 are ordinary words in every vocabulary here.
    words = torch.randint(100, 1000, is_image.shape, generator=generator, device=device)
    out = {
        "input_ids": torch.where(is_image, config.image_token_id, words),
        "attention_mask": torch.ones(is_image.shape, dtype=torch.int64, device=device),
    }

    pictures = batch * cameras
    if s.model_type == "qwen2_5_vl":
        assert s.grid is not None
        v = config.vision_config
        pixel_shape: tuple[int, ...] = (
            pictures * s.grid[0] * s.grid[1],
            v.in_channels * v.temporal_patch_size * v.patch_size**2,
        )
        out["image_grid_thw"] = torch.tensor([[1, *s.grid]] * pictures, device=_host_if_meta(device))
        out["mm_token_type_ids"] = is_image.to(torch.int32)
    else:
        side = config.vision_config.image_size
        side = side if isinstance(side, int) else side[0]
        pixel_shape = (pictures * s.tiles, 3, side, side)
        if s.model_type == "llava_onevision":
            # Several pictures per sample: each stays one tile, and one newline row ends it.
            out["batch_num_images"] = torch.tensor([cameras] * batch, device=_host_if_meta(device))
            # Squares, so that no token stands for padding.
            out["image_sizes"] = torch.tensor([[side, side]] * pictures, device=_host_if_meta(device))
            pixel_shape = (pictures, 1, 3, side, side)
    out["pixel_values"] = torch.randn(pixel_shape, generator=generator, dtype=dtype, device=device)
    return out


def _host_if_meta(device: torch.device | str) -> torch.device | str:
    """Sizes are read as numbers by the models, so they stay real where everything else is meta."""
    return "cpu" if torch.device(device).type == "meta" else device

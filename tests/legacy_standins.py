"""Tiny stand-ins for the two legacy stacks that driving models were released on.

`ForkLlava` has the call surface of a LLaVA-NeXT fork, `RemoteInternVL` that of the remote-code InternVL chat
model. Both are written from a description of the interface; only the language model is from transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tiny_models import HIDDEN, IMAGE, PATCH, PATCHES, randomize_, text_config
from tiny_tokenizer import BOS, PAD

IMAGE_TOKEN_INDEX = -200  # stands for a whole image in the fork's ids; not a valid embedding row
IGNORE_INDEX = -100
IMG_CONTEXT = 300  # below the vocabulary size


def _llama_config() -> LlamaConfig:
    return LlamaConfig(**{k: v for k, v in text_config("llama").items() if k != "model_type"})


def _finish(model: nn.Module, language_model: LlamaForCausalLM, seed: int) -> None:
    randomize_(model, seed)
    language_model.generation_config.pad_token_id = PAD
    language_model.generation_config.eos_token_id = None
    model.eval()


class PatchTower(nn.Module):
    """Patches of a 24x24 picture with positions, and one layer that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, PATCH, PATCH)
        self.position = nn.Parameter(torch.zeros(PATCHES, 32))
        self.mix = nn.Linear(PATCHES, PATCHES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(pixels).flatten(2).transpose(1, 2) + self.position
        return tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2).tanh()


class ForkLlava(LlamaForCausalLM):
    """A causal LM that splices image features into its embeddings by itself, as the LLaVA forks do."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # transformers guesses it from the class name and cannot here
        self.model.vision_tower = PatchTower()
        self.model.mm_projector = nn.Sequential(nn.Linear(32, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        self.model.image_newline = nn.Parameter(torch.zeros(HIDDEN))

    def get_model(self) -> nn.Module:
        return self.model

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """`[n, 3, H, W]` to `[n, N, D]`."""
        return self.model.mm_projector(self.model.vision_tower(images))

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids,
        position_ids,
        attention_mask,
        past_key_values,
        labels,
        images,
        modalities=("image",),
        image_sizes=None,
    ):
        """Return `(None, positions, mask, cache, embeddings, labels)`; what came as None goes as None."""
        if images is None or input_ids.shape[1] == 1:  # no picture, or a decode step
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        stacked = images if isinstance(images, torch.Tensor) else torch.cat(list(images))
        encoded = self.encode_images(stacked.reshape(-1, *stacked.shape[-3:]))
        newline = self.model.image_newline[None]
        features = iter([torch.cat([rows, newline]) for rows in encoded])

        real = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        given_labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        rows, row_labels = [], []
        for ids, keep, target in zip(input_ids, real, given_labels, strict=True):
            ids, target = ids[keep], target[keep]
            parts, part_labels, start = [], [], 0
            for at in [*(ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids)]:
                parts.append(self.model.embed_tokens(ids[start:at]))
                part_labels.append(target[start:at])
                if at < len(ids):
                    parts.append(next(features).to(parts[0].dtype))
                    part_labels.append(target.new_full((len(parts[-1]),), IGNORE_INDEX))
                start = at + 1
            rows.append(torch.cat(parts))
            row_labels.append(torch.cat(part_labels))

        length = max(map(len, rows))
        embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
        merged = given_labels.new_full((len(rows), length), IGNORE_INDEX)
        mask = torch.zeros(len(rows), length, dtype=torch.bool, device=input_ids.device)
        positions = torch.zeros(len(rows), length, dtype=torch.long, device=input_ids.device)
        for b, row in enumerate(rows):
            left = getattr(self.config, "tokenizer_padding_side", "right") == "left"
            where = slice(length - len(row), length) if left else slice(0, len(row))
            embeds[b, where], merged[b, where], mask[b, where] = row, row_labels[b], True
            positions[b, where] = torch.arange(len(row), device=input_ids.device)
        return (
            None,
            None if position_ids is None else positions,
            None if attention_mask is None else mask.to(attention_mask.dtype),
            past_key_values,
            embeds,
            None if labels is None else merged,
        )

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        images=None,
        image_sizes=None,
        modalities=("image",),
        **kwargs,
    ):
        if inputs_embeds is None:
            prepared = self.prepare_inputs_labels_for_multimodal(
                input_ids,
                position_ids,
                attention_mask,
                past_key_values,
                labels,
                images,
                modalities,
                image_sizes,
            )
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = prepared
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs=None, images=None, image_sizes=None, modalities=("image",), **kwargs):
        """Return the new tokens only: transformers has no ids to put before them."""
        position_ids = kwargs.pop("position_ids", None)
        attention_mask = kwargs.pop("attention_mask", None)
        if images is None:
            embeds = self.model.embed_tokens(inputs)
        else:
            _, position_ids, attention_mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                inputs, position_ids, attention_mask, None, None, images, modalities, image_sizes=image_sizes
            )
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return super().generate(attention_mask=attention_mask, inputs_embeds=embeds, **kwargs)


class RemoteInternVL(nn.Module):
    """A vision tower, a projector and a separate language model, glued by `generate` and `forward`."""

    num_image_token = PATCHES // 4

    def __init__(self) -> None:
        super().__init__()
        self.config = _llama_config()
        self.vision_model = PatchTower()
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(128), nn.Linear(128, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
        )
        self.language_model = LlamaForCausalLM(self.config)
        self.img_context_token_id = IMG_CONTEXT

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[tiles, 3, H, W]` to `[tiles, N, D]`, every token made of 2x2 patches."""
        side = IMAGE // PATCH
        grid = self.vision_model(pixel_values).reshape(-1, side // 2, 2, side // 2, 2, 32)
        return self.mlp1(grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.num_image_token, 128))

    def _embed(self, input_ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        embeds = self.language_model.get_input_embeddings()(input_ids)
        selected = input_ids == self.img_context_token_id
        rows = features.reshape(-1, embeds.shape[-1]).to(embeds.dtype)
        if int(selected.sum()) != len(rows):
            raise ValueError(f"{int(selected.sum())} context tokens for {len(rows)} features")
        return embeds.masked_scatter(selected[..., None], rows)

    def forward(
        self, pixel_values, input_ids=None, attention_mask=None, image_flags=None, labels=None, **kwargs
    ):
        """Training forward; tiles with flag 0 are dummies of text-only samples. Takes no ready features."""
        features = self.extract_feature(pixel_values)
        if image_flags is not None:
            features = features[image_flags.reshape(-1) == 1]
        embeds = self._embed(input_ids, features)
        return self.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, labels=labels, **kwargs
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        visual_features=None,
        generation_config=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """Return the new tokens only. `visual_features` replace the tower's, if `pixel_values` are given."""
        if pixel_values is None:
            embeds = self.language_model.get_input_embeddings()(input_ids)
        else:
            features = self.extract_feature(pixel_values) if visual_features is None else visual_features
            embeds = self._embed(input_ids, features)
        return self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            generation_config=generation_config,
            output_hidden_states=output_hidden_states,
            use_cache=True,
            **kwargs,
        )


def build_fork(seed: int = 0, padding_side: str = "left") -> ForkLlava:
    """Return a tiny fork; generation in batches needs left padding, training usually has right."""
    config = _llama_config()
    config.tokenizer_padding_side = padding_side
    model = ForkLlava(config)
    _finish(model, model, seed)
    return model


def build_remote(seed: int = 0) -> RemoteInternVL:
    """Return a tiny remote-code chat model."""
    model = RemoteInternVL()
    _finish(model, model.language_model, seed)
    return model


def _pixels(images: int, seed: int, sample: int) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1000 * seed + sample)
    return torch.randn(images, 3, IMAGE, IMAGE, generator=gen)


def _pad(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        where = slice(ids.shape[1] - len(row), None) if side == "left" else slice(0, len(row))
        ids[b, where], mask[b, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def _text_ids(sample: int, count: int) -> list[int]:
    return [10 + (7 * i + 31 * sample) % 240 for i in range(count)]


def make_fork_inputs(
    images_per_sample: Sequence[int], seed: int = 0, padding_side: str = "left", only: int | None = None
) -> dict:
    """Return `input_ids` with one -200 per image, `attention_mask` and `images` (a tensor per sample).

    The fork's `generate` calls the ids `inputs`, its `forward` `input_ids`. `only` picks one sample.
    """
    samples = range(len(images_per_sample)) if only is None else [only]
    rows = []
    for s in samples:
        views = [token for i in range(images_per_sample[s]) for token in (20 + i, IMAGE_TOKEN_INDEX)]
        rows.append([BOS, *views, *_text_ids(s, 6 + s)])
    images = [_pixels(images_per_sample[s], seed, s) for s in samples]
    return {**_pad(rows, padding_side), "images": images}


def make_remote_inputs(
    tiles_per_image: Sequence[Sequence[int]],
    seed: int = 0,
    padding_side: str = "left",
    only: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return `pixel_values` (all tiles), `input_ids`, `attention_mask`; a list of tile counts per sample."""
    samples = range(len(tiles_per_image)) if only is None else [only]
    rows = []
    for s in samples:
        views: list[int] = []
        for i, tiles in enumerate(tiles_per_image[s]):
            views += [20 + i, *[IMG_CONTEXT] * (tiles * RemoteInternVL.num_image_token), 21]
        rows.append([BOS, *views, *_text_ids(s, 6 + s)])
    pixels = torch.cat([_pixels(sum(tiles_per_image[s]), seed, s) for s in samples])
    return {"pixel_values": pixels, **_pad(rows, padding_side)}

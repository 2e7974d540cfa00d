"""Answering many questions about the same pictures: each picture encoded once, each prompt prefix read once.

A prompt is the pictures, which all questions share, and then a question. The prefix is read into a cache
(pruned or not); then the questions of a scene follow as one packed row, each with the positions it
would have alone and a mask under which it sees the pictures and itself. An answer is one token, so this
one pass gives every answer. The logits are those of one prompt per question, up to rounding.

A method that reads the question (attention from its tokens, its embeddings) keeps other tokens for every
question, so there each question is a prompt of its own; only the pictures are still encoded once.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.attach import Pruned
from ..engine.bias import add_bias
from ..engine.caches import SHORTENED
from ..engine.cutter import Stage
from ..engine.layers import cached_bias
from ..errors import PruneError
from ..families import find_family
from ..families.vision import SIGNALS, encode_with_signals
from ..rig import NUSCENES
from ..tokens import READS_QUESTION, Signal
from ..world.model import pixels, prefix_text
from ..world.questions import ANSWERS
from ..world.render import SIDE
from .world import Sample

GREY = 128
"""Level of every pixel of the blind control's pictures."""


def reads_question(stages: Sequence[Stage]) -> bool:
    """Whether what the stages keep depends on the question, and not on the pictures alone."""
    return any(stage.method.needs & READS_QUESTION for stage in stages)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder output of some scenes and what is asked about each; any number of answers reuse it."""

    output: Any
    texts: list[list[str]]

    def scene(self, number: int, copies: int) -> Any:
        """Encoder output of one scene, ``copies`` times over, with the vision tower's signals if any."""
        out = copy.copy(self.output)
        pictures = len(self.output.pooler_output) // len(self.texts)
        part = slice(number * pictures, (number + 1) * pictures)
        out.pooler_output = list(self.output.pooler_output[part]) * copies
        if (found := getattr(self.output, SIGNALS, None)) is not None:
            rows = {}
            for field in dataclasses.fields(found):
                if (flat := getattr(found, field.name)) is not None:
                    each = len(flat) // len(self.texts)
                    one = flat[number * each : (number + 1) * each]
                    rows[field.name] = one.repeat(copies, *[1] * (one.dim() - 1))
            setattr(out, SIGNALS, dataclasses.replace(found, **rows))
        return out


class Answerer:
    """A model that answers questions of the world benchmark; not attached to any `prune` while in use.

    Args:
        model: a stock model as `world.model.build_model` makes, loaded with sdpa or eager attention.
        processor: its processor, as `world.model.build_processor` makes.

    Raises:
        PruneError: answers that are not one token each, or an attention without 4-D masks.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor, self.tokenizer = processor, processor.tokenizer
        self._check()
        self._family: Any = find_family(model)
        grey = torch.full((len(NUSCENES), 3, SIDE, SIDE), GREY, dtype=torch.uint8)
        # The processor writes the placeholders, so that they are as many as in a plain prompt.
        inputs = processor(text=prefix_text(), images=list(grey), return_tensors="pt")
        self._prefix: Tensor = inputs["input_ids"].to(model.device)
        self._grey = grey
        self._blind: dict[str, str] = {}
        self._words: dict[str, list[int]] = {}
        # Of the last answer, where every question chose for itself: per scene what its first question
        # kept, and the layer-averaged tokens of its questions.
        self._accounts: list[tuple[dict[str, Any], float]] = []

    @property
    def tokens_per_picture(self) -> int:
        """Visual tokens of each camera, unpruned."""
        return int((self._prefix == self._family.image_token_id).sum()) // len(NUSCENES)

    def processor_settings(self) -> dict[str, Any]:
        """How pictures and prompts become inputs, as plain data."""
        settings = self.processor.image_processor.to_dict()
        return {"images": json.loads(json.dumps(settings, default=str)), "prefix": self._prefix[0].tolist()}

    def encode(self, samples: Sequence[Sample], needs: Collection[Signal] = ()) -> Encoded:
        """Run the vision tower and the projector over all pictures of the samples at once.

        ``needs``: signals of the vision tower that methods will ask for.
        """
        images = torch.stack([sample.images for sample in samples])
        return self._encode(images, [[q.text for q in sample.questions] for sample in samples], needs)

    def answer(self, encoded: Encoded, pruned: Pruned | None = None) -> list[list[str]]:
        """Answer every question of every scene: one word each, "" for a token that is no word.

        Args:
            pruned: made by `prune` for this model and not attached; its ``record`` then tells what
                was kept of each scene. None: nothing is pruned.
        """
        out = []
        for texts, logits in zip(encoded.texts, self.logits(encoded, pruned), strict=True):
            picks = logits.argmax(-1).tolist()[: len(texts)]
            out.append([self.tokenizer.decode([i], skip_special_tokens=True).strip() for i in picks])
        return out

    def kept(self, pruned: Pruned | None, number: int) -> dict[str, list[int]]:
        """Indices of the tokens kept of each camera of scene ``number`` in the last `answer`.

        Where the choice depends on the question: what the scene's first question kept.
        """
        if pruned is None:
            return {name: list(range(self.tokens_per_picture)) for name in NUSCENES.names}
        sample = self._accounts[number][0] if self._accounts else pruned.record.samples[number]
        return {name: cell.indices for name, cell in sample.items()}

    def layer_averaged(self, pruned: Pruned | None, number: int) -> float:
        """Visual tokens that a layer saw on average of scene ``number`` in the last `answer`."""
        if pruned is None:
            return float(self.tokens_per_picture * len(NUSCENES))
        return self._accounts[number][1] if self._accounts else pruned.record.layer_averaged[number]

    def blind(self, samples: Sequence[Sample]) -> list[list[str]]:
        """Answer from the words of the questions alone: all pictures are mid-grey.

        Then equal questions have equal answers, so each is asked once.
        """
        texts = [[q.text for q in sample.questions] for sample in samples]
        fresh = sorted({text for row in texts for text in row} - set(self._blind))
        if fresh:
            encoded = self._encode(self._grey[None], [fresh])
            self._blind.update(zip(fresh, self.answer(encoded)[0], strict=True))
        return [[self._blind[text] for text in row] for row in texts]

    @torch.inference_mode()
    def logits(self, encoded: Encoded, pruned: Pruned | None = None) -> list[Tensor]:
        """Logits of every answer: per scene (questions, vocabulary)."""
        count = len(encoded.texts)
        self._accounts = []
        if pruned is not None and reads_question(pruned.cutter.stages):
            with pruned:
                return [self._each_question(encoded, pruned, number) for number in range(count)]
        with pruned or nullcontext():
            read = self.model(
                input_ids=self._prefix.expand(count, -1),
                attention_mask=torch.ones_like(self._prefix).expand(count, -1),
                mm_encoder_outputs={"image": encoded.output},
                use_cache=True,
                logits_to_keep=1,
            )
        if pruned is not None and count > 1 and _ragged(pruned):
            raise PruneError(
                "the budgets of the scenes differ in total, so their prefixes differ in length; "
                "encode and answer them one at a time"
            )
        return self._ask(read.past_key_values, encoded.texts, self._following(read.past_key_values))

    def _each_question(self, encoded: Encoded, pruned: Pruned, number: int) -> Tensor:
        """Logits of a scene's answers, every question with a prefix of its own: (questions, vocabulary)."""
        texts = encoded.texts[number]
        # A scene about which nothing is asked is read as it stands, for the account of what is kept.
        rows = [self._tokens(text) for text in texts] or [[]]
        width = max(map(len, rows))
        prefix = self._prefix[0].tolist()
        pad = self.tokenizer.pad_token_id
        ids = [[pad] * (width - len(row)) + prefix + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * (len(prefix) + len(row)) for row in rows]
        device = self._prefix.device
        real = torch.tensor(mask, device=device)
        out = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=real,
            # As generation counts them: some methods look at keys, which turn with their place.
            position_ids=(real.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"image": encoded.scene(number, len(rows))},
            use_cache=False,
            logits_to_keep=1,
        )
        record = pruned.record
        averaged = record.layer_averaged
        self._accounts.append((record.samples[0], sum(averaged) / len(averaged)))
        return out.logits[: len(texts), -1].float()

    @torch.inference_mode()
    def choose(self, encoded: Encoded, pruned: Pruned) -> None:
        """Let a method choose of the features, and nothing more; its ``record`` tells what it kept."""
        count = len(encoded.texts)
        pruned.rewrite(
            input_ids=self._prefix.expand(count, -1),
            attention_mask=torch.ones_like(self._prefix).expand(count, -1),
            mm_encoder_outputs={"image": encoded.output},
        )

    def restored(self, features: Tensor, texts: list[list[str]]) -> Encoded:
        """What `encode` returned, from its features kept elsewhere.

        Args:
            features: ``(S, V, N, D)``, as ``output.pooler_output`` holds them, for S scenes.
            texts: the questions of each.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        flat = features.flatten(0, 1).to(self.model.device, self.model.dtype, non_blocking=True)
        return Encoded(BaseModelOutputWithPooling(pooler_output=list(flat)), texts)  # type: ignore[arg-type]

    # -- the two passes -------------------------------------------------------------------------

    @torch.inference_mode()
    def _encode(self, images: Tensor, texts: list[list[str]], needs: Collection[Signal] = ()) -> Encoded:
        given = pixels(images.flatten(0, 1).to(self.model.device)).to(self.model.dtype)
        return Encoded(encode_with_signals(self._family, {"pixel_values": given}, needs), texts)

    def _ask(self, cache: Any, texts: Sequence[Sequence[str]], following: Tensor) -> list[Tensor]:
        """Let the questions of each scene follow its prefix in ``cache``, which grows by them.

        ``following``: position of every question's first token, int64 (B, 1) or (1, 1).
        """
        device = self._prefix.device
        rows = [[self._tokens(text) for text in row] for row in texts]
        width = max((sum(map(len, row)) for row in rows), default=0)
        if width == 0:
            return [torch.empty(0, len(self.tokenizer), device=device) for _ in rows]
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        owner = torch.full((len(rows), width), -1)  # which question of its row a token belongs to
        offset = torch.zeros(len(rows), width, dtype=torch.long)
        ends = []
        for b, row in enumerate(rows):
            at = 0
            for number, tokens in enumerate(row):
                part = slice(at, at + len(tokens))
                ids[b, part], owner[b, part] = torch.tensor(tokens), number
                offset[b, part] = torch.arange(len(tokens))
                at = part.stop
            ends.append([sum(map(len, row[: n + 1])) - 1 for n in range(len(row))])
        layers = self._family.language_model.layers
        longest = max(cache.get_seq_length(number) for number in range(len(layers)))
        mask = _mask(owner.to(device), longest, self.model.dtype)
        with _fitting_masks(layers, cache):
            out = self.model(
                input_ids=ids.to(device),
                attention_mask=mask,
                position_ids=following + offset.to(device),
                past_key_values=cache,
            )
        return [logits[end].float() for logits, end in zip(out.logits, ends, strict=True)]

    def _following(self, cache: Any) -> Tensor:
        """Position of a token behind the prefix, as in a prompt that goes on there."""
        device = self._prefix.device
        short = getattr(cache, SHORTENED, None)
        if short is None:
            return torch.full((1, 1), self._prefix.shape[1], device=device)
        return short.following.to(device)[:, None]

    def _tokens(self, text: str) -> list[int]:
        if text not in self._words:
            self._words[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._words[text]

    def _check(self) -> None:
        for answer in sorted({word for words in ANSWERS.values() for word in words}):
            tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            if len(tokens) != 1 or tokens[0] == self.tokenizer.unk_token_id:
                raise PruneError(
                    f"this model's tokenizer makes {len(tokens)} known tokens of the answer {answer!r}; the "
                    "world benchmark needs one. Give a model made by prune2drive.world"
                )
        kind = getattr(self.model.config.get_text_config(), "_attn_implementation", None)
        if kind not in ("sdpa", "eager"):
            raise PruneError(f"attention {kind!r} takes no packed questions; load the model with attn='sdpa'")


def _mask(owner: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, prefix + T): all of the prefix, and what precedes in the same question.

    Padding counts as one more question, so no row is empty. Additive: eager attention knows no other.
    """
    width = owner.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=owner.device).tril()
    same = (owner[:, :, None] == owner[:, None, :]) & causal
    own = torch.zeros(same.shape, dtype=dtype, device=owner.device).masked_fill(~same, torch.finfo(dtype).min)
    return torch.nn.functional.pad(own, (prefix, 0))[:, None]


@contextmanager
def _fitting_masks(layers: Sequence[nn.Module], cache: Any) -> Iterator[None]:
    """Give every layer a mask as wide as its own cache: after a layer pruner they differ in length.

    The columns of the prefix are all alike, so the surplus is cut off in front.
    """

    def fit(number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mask = kwargs["attention_mask"]
            width = cache.get_seq_length(number) + mask.shape[-2]
            mask = mask[..., mask.shape[-1] - width :]
            bias = cached_bias(cache, number, kwargs.get("position_embeddings"))
            if bias is not None:  # merged or calibrated keys weigh the same for every question
                mask = add_bias(mask, torch.nn.functional.pad(bias, (0, width - bias.shape[-1])), mask.dtype)
            return args, {**kwargs, "attention_mask": mask}

        return hook

    handles = [layer.register_forward_pre_hook(fit(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ragged(pruned: Pruned) -> bool:
    """Whether some stage kept different totals of different scenes, which would need padding."""
    stages = [pruned.record.stage(number) for number in range(len(pruned.cutter.stages))]
    return any(len({sum(cell.kept for cell in row.values()) for row in stage}) > 1 for stage in stages)

"""A byte-level tokenizer without files: any text encodes to one id per byte and decodes back.

Ids are fixed: pad 0, bos 1, eos 2, unk 3, the 256 bytes 4..259, then the special tokens in the given order.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = 0, 1, 2, 3
FIRST_EXTRA = 4 + 256


def build_tokenizer(named: dict[str, str], plain: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer; `named` tokens become attributes (`tok.image_token_id`), `plain` ones do not.

    Tokens get ids from 260 upwards, `named` first, in the order given.
    """
    vocab = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNK}
    for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[char] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    extra = dict.fromkeys([*named.values(), *plain])
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in extra])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(named),
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )

"""A prefix before every text, such as E5's "query: ", as a part of the tokenizer's template.

There no cut drops it, and whatever reads tokenizer.json has it.
"""

from typing import Any

from tokenizers import Encoding, Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdc.common.errors import InputError

_NAME = "prefix"  # in the template
_PROBES = ("word", "zwei Wörter", "日本語")


def with_prefix(tokenizer: Any, prefix: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a prefix, unless it has that already.

    Raises:
        InputError: prefix and text together have other tokens than apart.
    """
    before, after = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
    before.no_padding()
    before.no_truncation()
    encoded = before.encode(prefix.strip(), add_special_tokens=False)
    single, pair = before.encode(_PROBES[0]), before.encode(_PROBES[0], _PROBES[0])
    start = single.sequence_ids.index(0)
    if encoded.ids and single.ids[:start][-len(encoded) :] == encoded.ids:
        return tokenizer
    owned = zip(pair.tokens, pair.ids, pair.sequence_ids, strict=True)
    special: list[Any] = [(token, number) for token, number, owner in owned if owner is None]
    special.append({"id": _NAME, "ids": encoded.ids, "tokens": encoded.tokens})
    after.post_processor = processors.TemplateProcessing(_template(single), _template(pair), special)
    whole = [before.encode(prefix + text).ids for text in _PROBES]
    before.post_processor = after.post_processor
    if [before.encode(text).ids for text in _PROBES] != whole:
        raise InputError(
            "this tokenizer has other tokens for prefix and text together than apart",
            given=f"data.prefix={prefix!r}",
            remedy="drop data.prefix, and put it into the texts of all files and requests",
        )
    return with_backend(tokenizer, after)


def _template(row: Encoding) -> list[str]:
    parts: list[str] = []
    for token, kind, owner in zip(row.tokens, row.type_ids, row.sequence_ids, strict=True):
        text = None if owner is None else f"${'AB'[owner]}:{kind}"
        if text is None:
            parts.append(f"{token}:{kind}")
        elif text not in parts:
            parts += [f"{_NAME}:{kind}", text]
    return parts


def with_backend(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of these settings that, unlike transformers' own classes, opens its tokenizer.json unchanged."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )

"""A prefix before every text, such as E5's "query: ", in the tokenizer's template: no cut drops it there."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdc.common.errors import InputError

_NAME = "prefix"  # in the template
_PROBES = ("word", "zwei Wörter", "日本語")


def with_prefix(tokenizer: Any, prefix: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a prefix, unless it has that already.

    Raises:
        InputError: it has no template, or other tokens for prefix and text together than apart.
    """
    before = tokenizer.backend_tokenizer
    encoded, whole = before.encode(prefix.strip(), add_special_tokens=False), json.loads(before.to_str())
    template = whole["post_processor"] or {}
    special = template.get("special_tokens", {})
    if special.get(_NAME, {}).get("ids") == encoded.ids:
        return tokenizer
    special[_NAME] = {"id": _NAME, "ids": encoded.ids, "tokens": encoded.tokens}
    for row in (template.get("single", []), template.get("pair", [])):
        for place, text in reversed([*enumerate(part.get("Sequence") for part in row)]):
            if text is not None:
                row.insert(place, {"SpecialToken": {"id": _NAME, "type_id": text["type_id"]}})
    after = Tokenizer.from_str(json.dumps(whole))
    if any(before.encode(prefix + text).ids != after.encode(text).ids for text in _PROBES):
        raise InputError(
            "this tokenizer cannot put a prefix before texts: together they would be other tokens",
            given=f"data.prefix={prefix!r}",
            remedy="drop data.prefix, and put it into the texts of all files and requests",
        )
    return with_backend(tokenizer, after)


def with_backend(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of these settings that, unlike transformers' own classes, opens its tokenizer.json unchanged."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )

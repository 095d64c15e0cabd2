"""Which cuts a teacher's config allows, and which are tried."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError
from kdc.pipeline.models.cutting import Cut, cut, first_and_last, parse_cut
from kdc.pipeline.models.loading import load_config
from kdc.pipeline.models.units import (
    WIDTH_FIELDS,
    encoder_layers,
    first_units,
    heads_of,
    neurons_of,
    with_its_heads,
)

# Attributes that do not change what a layer computes, and widths, which weights show.
_NOT_OF_FORM = ("layer_idx", "layer_id", "seed", *WIDTH_FIELDS)
# With fewer heads these answer like all with the others silenced. MPNet's position biases are for all heads.
_HEADED = ("bert", "big_bird", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "roberta", "xlm-roberta")


def check_cut(spec: str, teacher: str) -> None:
    """Raise InputError as `parse_cut`, and for layers that depend on their position or widths that cannot shrink."""
    config = load_config(teacher)
    wanted = parse_cut(spec, config)
    if (whole := _without_weights(config)) is not None:
        encoder_layers(whole)
    problem = ""
    if not can_be_cut(teacher, Cut(wanted.layers)):
        problem = "what a layer of this teacher does depends on its position, so these layers cannot be taken alone"
    elif wanted.ffn is not None and not _can_be_narrowed(config, Cut((), ffn=wanted.ffn)):
        problem = "the feed-forward parts of this teacher cannot be made narrower"
    elif wanted.heads is not None and not _can_be_narrowed(config, replace(wanted, layers=())):
        problem = "this teacher's layers cannot have fewer heads"
    if problem:
        remedy = "take the first layers (--student layers:0,1,2) without ffn= and heads=, or another student"
        raise InputError(problem, given=f"{spec} of a {config.model_type}", remedy=remedy)


def can_be_cut(teacher: str, wanted: Cut) -> bool:
    """Whether a student with these layers reopens unchanged; True if only weights show it."""
    return _opens_as_it_was_cut(load_config(teacher), wanted) is not False


def half_width(teacher: str) -> Cut:
    """Half the neurons and heads; None for what cannot shrink."""
    config = load_config(teacher)
    ffn, heads = neurons_of(config) // 2, heads_of(config) // 2
    half = Cut((), ffn=ffn) if ffn and _can_be_narrowed(config, Cut((), ffn=ffn)) else Cut(())
    both = replace(half, heads=heads)
    return both if heads and _can_be_narrowed(config, both) else half


def cuts_of_search(teacher: str) -> list[str]:
    total = _depth(teacher)
    depths = [first_and_last(count, total) for count in range(total, 0, -1)]
    return _possible((replace(width, layers=layers) for width in _widths(teacher) for layers in depths), teacher)


def cuts_of_curve(teacher: str) -> list[str]:
    total, (whole, *narrower) = _depth(teacher), _widths(teacher)
    steps = [(1, 2, whole), (1, 3, whole), (1, 6, whole)]
    if narrower:
        half, least = narrower[0], narrower[-1]
        steps = [(1, 2, whole), (2, 3, half), (1, 2, half), (1, 2, least), (1, 3, half), (1, 6, half)]
    cuts = [replace(width, layers=first_and_last(max(1, part * total // of), total)) for part, of, width in steps]
    return _possible(cuts, teacher)


def _depth(teacher: str) -> int:
    return getattr(load_config(teacher), "num_hidden_layers", 0)


def _widths(teacher: str) -> list[Cut]:
    half = half_width(teacher)
    return list(dict.fromkeys([Cut(()), Cut((), half.ffn), half]))


def _possible(cuts: Iterable[Cut], teacher: str) -> list[str]:
    total = _depth(teacher)
    smaller = [each for each in cuts if len(each.layers) < total or each.is_narrow]
    # `half_width` checked the widths.
    opens = {layers: can_be_cut(teacher, Cut(layers)) for layers in {each.layers for each in smaller}}
    return [str(each) for each in smaller if opens[each.layers]]


def _can_be_narrowed(config: PretrainedConfig, width: Cut) -> bool:
    every = replace(width, layers=tuple(range(config.num_hidden_layers)))
    return bool(_opens_as_it_was_cut(config, every)) and (width.heads is None or config.model_type in _HEADED)


def _opens_as_it_was_cut(config: PretrainedConfig, wanted: Cut) -> bool | None:
    """Compares the cut model with a new one; None if a config makes none."""
    whole = _without_weights(config)
    if whole is None:
        return None
    with suppress(Exception):
        small = cut(whole, wanted, first_units)
        again = _without_weights(type(config).from_dict(small.config.to_dict()))
        return again is not None and _form(small) == _form(again)
    return False


def _without_weights(config: PretrainedConfig) -> PreTrainedModel | None:
    with suppress(Exception), torch.device("meta"):
        return with_its_heads(AutoModel.from_config(config))
    return None


def _form(model: PreTrainedModel) -> dict[str, Any]:
    form: dict[str, Any] = {name: weight.shape for name, weight in model.state_dict().items()}
    for path, module in encoder_layers(model)[1].named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (int, float, str, tuple)) and not name.startswith("_") and name not in _NOT_OF_FORM:
                form[f"{path}:{name}"] = value
    return form

"""Opens a model's config, which comes before anything else of a model.

A config that others wrote is hostile input: transformers 4.57 fetches code that some of them name, and runs it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

# What a broken config.json has transformers raise.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)


def open_config(place: str | Path, **options: Any) -> PretrainedConfig:
    """The config of a saved model, without its weights.

    Only architectures of transformers' own classifiers are opened. All of these have their code in transformers, none
    opens a second config of another place (LightGlue's does, CVE-2026-5241), and none can generate text, for which
    transformers 4.57 runs code beside the weights (CVE-2026-80047).

    Args:
        place: a folder, or a hub id.
        options: what to change of it, as `from_pretrained` takes them.

    Raises:
        One of UNREADABLE: there is no such model, or its config.json is broken.
        ValueError: the architecture is none of those, or the config names attention code that lies on a hub
            (CVE-2026-4372).
    """
    file, _ = PretrainedConfig.get_config_dict(place)
    if (architecture := file.get("model_type")) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(
            f"its config.json has the model_type {architecture!r}, of which transformers has no classifier"
        )
    if "attribute_map" in file:  # would give a setting the name of another one
        raise ValueError("its config.json has an attribute_map, which transformers writes into none")
    for part in _parts(file):
        for name in ("_attn_implementation", "_attn_implementation_internal", "attn_implementation"):
            if "/" in str(part.get(name)):
                raise ValueError(f"its config.json has {name}={part[name]!r}, which would run code of a hub")
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    return config


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """All dicts of a JSON document, at every depth."""
    if isinstance(part, dict):
        yield part
    if isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _parts(value)

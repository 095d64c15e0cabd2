"""Opens a model's config, which comes before anything else of a model.

A config that others wrote is hostile input: transformers 4.57 fetches code that it names, and runs it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig


def open_config(place: str | Path, **options: Any) -> PretrainedConfig:
    """The config of a saved model, without its weights.

    Args:
        place: a folder, or a hub id.
        options: what to change of it, as `from_pretrained` takes them.

    Raises:
        OSError, ValueError: there is no such model, or transformers does not know its architecture.
        ValueError: the config would have code of a hub run. It names attention that lies there (CVE-2026-4372), or
            says itself that such code is to be trusted, which LightGlue's heeds (CVE-2026-5241).
    """
    file, _ = PretrainedConfig.get_config_dict(place)
    for name, value in _settings(file):
        if (name == "trust_remote_code" and value) or ("_implementation" in name and "/" in str(value)):
            raise ValueError(f"its config.json has {name}={value!r}, which would run code of a hub")
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    return config


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    """All names and values of a JSON document, at every depth."""
    if isinstance(part, dict):
        yield from part.items()
    if isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _settings(value)

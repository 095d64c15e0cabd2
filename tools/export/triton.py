"""An artifact as a model for Triton's ONNX Runtime backend.

Clients make token ids with the `tokenizer.json` beside the model, and get logits. `config.pbtxt` follows
`model_config.proto`.
"""

import json
import re
import shutil
from pathlib import Path

from kdc.artifact.manifest import MANIFEST_NAME, Manifest

_MOST_ROWS = 64  # of a request or a batch
_WAIT_US = 500  # for a batch's further requests


def model_name(task: str) -> str:
    return re.sub(r"[^a-z0-9_.-]", "-", task.lower()).strip("._-") or "model"


def write_model(artifact: Path, manifest: Manifest, folder: Path, *, name: str, variant: str) -> None:
    graph = manifest.variants[variant].file  # type: ignore[index]
    (folder / "1").mkdir()
    shutil.copyfile(artifact / graph, folder / "1" / "model.onnx")
    for file in ("tokenizer.json", MANIFEST_NAME):
        shutil.copyfile(artifact / file, folder / file)
    if manifest.task.labels:
        lines = (" ".join(label.split()) + "\n" for label in manifest.task.labels)
        (folder / "labels.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "config.pbtxt").write_text(_config(manifest, name, variant), encoding="utf-8")


def _config(manifest: Manifest, name: str, variant: str) -> str:
    inputs = ",\n".join(
        f"  {{ name: {_text(input)} data_type: TYPE_INT64 dims: [ -1 ] }}" for input in manifest.input_names
    )
    task, labels = manifest.task, ' label_filename: "labels.txt"' if manifest.task.labels else ""
    values = {"kdc_sha256": manifest.sha256, "kind": task.kind, "temperature": manifest.temperature}
    values |= {"center": task.center, "spread": task.spread}
    values |= manifest.tokenizer.model_dump(mode="json", exclude={"token_type_ids"}, exclude_none=True)
    texts = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in values.items()}
    parameters = "\n".join(
        f"parameters {{ key: {_text(name)} value {{ string_value: {_text(text)} }} }}" for name, text in texts.items()
    )
    # int8 products are fast only on CPUs.
    group = "instance_group [ { kind: KIND_CPU } ]\n" if variant == "int8" else ""
    return f"""name: {_text(name)}
backend: "onnxruntime"
max_batch_size: {_MOST_ROWS}
input [
{inputs}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {task.outputs} ]{labels} }}
]
{group}dynamic_batching {{ max_queue_delay_microseconds: {_WAIT_US} }}
{parameters}
"""


def _text(value: str) -> str:
    """A protobuf string takes JSON's escapes."""
    return json.dumps(value, ensure_ascii=False)

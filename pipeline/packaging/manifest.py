"""The manifest of a run's artifact."""

import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdc.artifact.folder import describe_files
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, Lineage, Manifest, Variant
from kdc.common.version import __version__
from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.evaluation.variants import CASCADE, CASCADE_FP32, Variants
from kdc.pipeline.graphs.files import FP16_ONNX, FP32_ONNX, INT8_ONNX, read_tokenizer_info
from kdc.pipeline.graphs.onnx_graph import versions_of
from kdc.pipeline.results.artifact import ExportResult, QuantizeResult
from kdc.pipeline.results.base import Table

# Names that transformers.js expects, and names in earlier stages.
ONNX_FILES = {
    "fp32": ("model.onnx", FP32_ONNX),
    "int8": ("model_int8.onnx", INT8_ONNX),
    "fp16": ("model_fp16.onnx", FP16_ONNX),
}
_SECOND_FILES = {"fp32": "second.onnx", "int8": "second_int8.onnx"}


def manifest_of(
    folder: Path,
    table: Table,
    exported: ExportResult,
    quantized: QuantizeResult,
    made: Variants,
    lineage: Lineage,
    folded_temperature: float | None,
) -> Manifest:
    """Copies second models into the folder."""
    variants = _variants(folder, table, exported, quantized)
    variants |= _cascades(made, table, variants, folder)
    info = read_tokenizer_info(made.exported)
    return Manifest(
        kdc_version=__version__,
        task=made.task,
        lineage=lineage,
        files=describe_files(folder, sorted(file.name for file in folder.iterdir())),
        tokenizer=info,
        input_names=info.input_names,
        variants=variants,
        providers={
            CPU_PROVIDER: CASCADE if CASCADE in variants else "int8" if quantized.chosen else "fp32",
            CUDA_PROVIDER: on_cuda(variants, table),
        },
        temperature=quantized.temperature,
        folded_temperature=None if folded_temperature == 1 else folded_temperature,
        metrics=table,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _variants(folder: Path, table: Table, exported: ExportResult, quantized: QuantizeResult) -> dict[str, Variant]:
    int8 = quantized.candidates[quantized.winner] if quantized.winner is not None else None
    parity = {
        "fp32": exported.fp32_parity,
        "int8": None if int8 is None else int8.parity,
        "fp16": exported.fp16_parity if isinstance(exported.fp16_parity, float) else None,
    }
    variants = {}
    for name, (file, _) in ONNX_FILES.items():
        if name not in table or not (folder / file).exists():
            (folder / file).unlink(missing_ok=True)
            continue
        row: dict[str, Any] = table.get(f"{name} (cuda)", table[name]) if name == "fp16" else table[name]
        opset, ir = versions_of(folder / file)
        variants[name] = Variant(
            file=file,
            parity=parity[name],
            batch_invariance=int8.max_probability_difference if int8 is not None and name == "int8" else None,
            opset=opset,
            ir=ir,
            candidate=quantized.winner if name == "int8" else None,
            **_measured(row),
        )
    return variants


def _cascades(made: Variants, table: Table, variants: Mapping[str, Variant], folder: Path) -> dict[str, Variant]:
    cascades = {}
    for name, pair in made.pairs.items():
        if name not in table or (name == CASCADE_FP32 and f"{name} (cuda)" not in table):  # it could not be run
            continue
        first, second = variants[pair.first], made.second.files[pair.second]
        shutil.copyfile(second, folder / _SECOND_FILES[pair.second])
        opset, ir = versions_of(second)
        cascades[name] = Variant(
            file=first.file,
            second=made.second_of(pair, _SECOND_FILES[pair.second]),
            opset=max(opset, first.opset),
            ir=max(ir, first.ir),
            **_measured(table.get(f"{name} (cuda)", table[name])),
        )
    return cascades


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    memory = row.get("peak_memory_bytes")
    return {
        "size_bytes": row["size_bytes"],
        "metrics": {key: value for key, value in row.items() if key.removesuffix("_mismatched") in METRICS},
        "latency_p50_ms": row.get("latency_p50_ms"),
        "latency_p95_ms": row.get("latency_p95_ms"),
        "rows_per_second": row.get("rows_per_second"),
        "peak_memory_mb": round(memory / 1e6, 1) if memory else None,
    }


def on_cuda(variants: Iterable[str], table: Table) -> str:
    """A cascade, else fp16 if it ran on a GPU (a CPU shows no overflow), else fp32."""
    if CASCADE_FP32 in variants:
        return CASCADE_FP32
    return "fp16" if "fp16" in variants and "fp16 (cuda)" in table else "fp32"


def without_unused_cascades(folder: Path, manifest: Manifest) -> Manifest:
    loaded = set(manifest.providers.values())
    variants = {name: made for name, made in manifest.variants.items() if made.second is None or name in loaded}
    unused = set(_SECOND_FILES.values()).difference(*(variant.graphs for variant in variants.values()))
    for name in unused:
        (folder / name).unlink(missing_ok=True)
    files = {name: file for name, file in manifest.files.items() if name not in unused}
    return manifest.model_copy(update={"variants": variants, "files": files})

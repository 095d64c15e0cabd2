"""Exports a model to ONNX and compares logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdc.artifact.manifest import LongTexts, TokenizerInfo
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.data.tokens import apart, tokenizer_info
from kdc.pipeline.graphs.files import FP32_ONNX, TOKENIZER_INFO, TOKENIZER_JSON
from kdc.pipeline.graphs.int8_trials import TuningSlice
from kdc.pipeline.graphs.onnx_graph import Exporter, export_onnx, graph_inputs, save_graph
from kdc.pipeline.graphs.parity import Feeds, LogitsFunction, check_parity, onnx_logits, parity_batches, torch_logits
from kdc.pipeline.graphs.simplify import simplify
from kdc.pipeline.models import loading
from kdc.serving.engine.engine import Engine

if TYPE_CHECKING:
    import datasets

_ROWS = 64
_LONGEST = 512  # tokens; 32 longer rows take gigabytes


@dataclass(frozen=True)
class Exported:
    exporter: str
    parity: float  # largest logit difference
    answer: LogitsFunction
    batches: list[Feeds]


def export_model(
    model: Path,
    out: Path,
    tokens: "datasets.Dataset",
    *,
    exporter: Exporter,
    is_pair: bool,
    max_length: int,
    long: LongTexts | None,
    seed: int,
) -> Exported:
    """Export a model and check its graph; KdcError if logits differ.

    Args:
        max_length: tokens of rows or windows.
        long: None cuts longer rows.
    """
    made_by, info = write_graph(model, out, exporter=exporter, is_pair=is_pair, max_length=max_length, long=long)
    rows = apart(tokens[index] for index in range(min(_ROWS, len(tokens))))
    longest = min(max_length, _LONGEST)
    batches = list(parity_batches(rows, pad_id=info.pad_id, max_length=longest, seed=seed))
    answer = onnx_logits(out / FP32_ONNX)
    return Exported(made_by, check_parity(answer, torch_logits(model), batches), answer, batches)


def write_graph(
    model: Path, out: Path, *, exporter: Exporter, is_pair: bool, max_length: int, long: LongTexts | None
) -> tuple[str, TokenizerInfo]:
    """Write the fp32 graph and tokenizer. A graph for single texts takes no token types that are all 0."""
    tokenizer = loading.load_tokenizer(str(model))
    typed = "token_type_ids" in tokenizer.model_input_names
    typed = typed and (is_pair or any(tokenizer.backend_tokenizer.encode("a").type_ids))
    made_by = export_onnx(model, out / FP32_ONNX, exporter=exporter, token_type_ids=typed)
    typed = "token_type_ids" in graph_inputs(out / FP32_ONNX)
    info = tokenizer_info(tokenizer, max_length=max_length, token_type_ids=typed, long=long)
    save_graph(simplify(out / FP32_ONNX, pad_id=info.pad_id, max_length=max_length), out / FP32_ONNX)
    (out / TOKENIZER_INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")
    tokenizer.backend_tokenizer.save(str(out / TOKENIZER_JSON), pretty=False)  # a third smaller
    return made_by, info


def tuning_slice(data: PreparedData, fp32: Engine, *, most: int | None = None) -> TuningSlice:
    """The tuning set, or `most` evenly spaced rows, with fp32's logits."""
    rows = data.rows("tune")
    count = min(most or len(rows), len(rows))
    rows = rows.select(np.arange(count) * len(rows) // count)  # a file may be sorted by label
    texts = texts_of(rows)
    return TuningSlice(texts, np.asarray(rows["label"][:]), fp32.logits(texts), data.task)

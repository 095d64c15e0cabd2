"""The student's number formats, alone or in a cascade."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdc.artifact.manifest import Second, TaskInfo
from kdc.pipeline.evaluation.second_model import SecondModel, second_model
from kdc.pipeline.graphs.files import FP32_ONNX, INT8_ONNX, TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.quality.peak_memory import ModelFiles
from kdc.pipeline.results.artifact import CascadeResult, Pair, QuantizeResult
from kdc.pipeline.rundir.context import Run

CASCADE, CASCADE_FP32 = "cascade", "cascade_fp32"


@dataclass(frozen=True)
class Variants:
    exported: Path  # the student's fp32 graph and tokenizer
    task: TaskInfo
    students: Mapping[str, Path]  # ONNX files by number format; int8 only if a CPU loads it
    second: SecondModel
    second_name: str  # in words
    pairs: Mapping[str, Pair]  # cascades by variant; empty if none gains

    def second_of(self, pair: Pair, file: str) -> Second:
        return Second(
            name=self.second_name,
            file=file,
            token_type_ids=read_tokenizer_info(self.second.folder).token_type_ids,
            temperature=pair.temperature,
            answered_from=pair.answered_from,
            share=pair.share,
        )

    def files(self, variant: str) -> ModelFiles:
        pair, second = self.pairs.get(variant), None
        if pair is not None:
            file = self.second.files[pair.second]
            second = self.second_of(pair, file.name), file
        return ModelFiles(
            model=self.students[variant if pair is None else pair.first],
            tokenizer_json=self.exported / TOKENIZER_JSON,
            tokenizer=read_tokenizer_info(self.exported),
            task=self.task,
            second=second,
        )


def student_files(exported: Path, quantized: Path, *, with_int8: bool) -> dict[str, Path]:
    return {"fp32": exported / FP32_ONNX} | ({"int8": quantized / INT8_ONNX} if with_int8 else {})


def variants_of(run: Run) -> Variants:
    """Call after stage `cascade`."""
    cascade, with_int8 = run.result_or_none(CascadeResult), run.result(QuantizeResult).chosen is not None
    return Variants(
        exported=run.folder("export"),
        task=run.data().task.info(),
        students=student_files(run.folder("export"), run.folder("quantize"), with_int8=with_int8),
        second=second_model(run),
        second_name="" if cascade is None else cascade.second,
        pairs={} if cascade is None else cascade.variants,
    )

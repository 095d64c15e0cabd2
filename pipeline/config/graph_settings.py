"""Settings of export and int8."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kdc.pipeline.config.section import SPLIT, Section


class ExportSettings(Section):
    """Stage `export`: write the student as ONNX."""

    exporter: Literal["auto", "optimum", "torch"] = Field(
        "auto", description="exporter of the ONNX file; auto takes torch, or Optimum if onnxscript is not installed"
    )
    fp16: bool = Field(True, description="also make an fp16 variant, for CUDA")
    teacher: bool = Field(
        True,
        description="also export the uncut teacher in fp32 and int8, and show it beside the student in every table",
    )
    formats: Annotated[tuple[Literal["onnx", "hf"], ...], SPLIT] = Field(
        ("onnx", "hf"),
        description="formats of the artifact, separated by commas: onnx, which kdc serves (always), and hf, a Hugging "
        "Face folder with config, tokenizer and weights for transformers, Optimum and transformers.js",
    )

    @field_validator("formats")
    @classmethod
    def _can_be_served(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in value:
            raise ValueError("an artifact is always onnx: give onnx, or onnx,hf")
        return tuple(name for name in ("onnx", "hf") if name in value)


class QuantizeSettings(Section):
    """Stage `quantize`: make int8 candidates and choose one."""

    enabled: bool = Field(True, description="make int8 candidates and judge them")
    max_int8_drop: float = Field(
        1.0, ge=0, description="points of the metric that int8 may lose against the fp32 ONNX file"
    )
    free_drop: float = Field(
        0.3,
        ge=0,
        description="points of the metric that int8 may lose before kdc tries more candidates",
    )
    vector_bits: Literal["auto", 8, 4] = Field(
        "auto",
        description="bits of each number of the token embeddings in an int8 file: 8; 4, for little more than half the "
        "size (if 32 divides their width); auto: 4 if a contract's max_size_mb needs it, otherwise 8",
    )
    calibration_rows: int = Field(256, ge=8, description="training rows that set the ranges of activations")
    invariance_rows: int = Field(
        500, ge=2, description="compare the answers to this many rows alone and in random batches of 16; at least 500"
    )
    rounds: int = Field(20, ge=1, description="timing rounds, in turns over all candidates; the median counts")

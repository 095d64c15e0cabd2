"""The folder of an exported model: the names of its files, and how its tokenizer cuts and pads rows."""

from pathlib import Path

from kdc.artifact.manifest import TokenizerInfo

FP32_ONNX, FP16_ONNX, INT8_ONNX = "model.onnx", "model.fp16.onnx", "model.int8.onnx"
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_INFO = "tokenizer_info.json"  # how the engine cuts and pads rows


def read_tokenizer_info(exported: Path) -> TokenizerInfo:
    """How rows are cut and padded for a model that was exported into a folder."""
    return TokenizerInfo.model_validate_json((exported / TOKENIZER_INFO).read_text(encoding="utf-8"))

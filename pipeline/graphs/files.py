"""File names of an exported model."""

from pathlib import Path

from kdc.artifact.manifest import TokenizerInfo

FP32_ONNX, FP16_ONNX, INT8_ONNX = "model.onnx", "model.fp16.onnx", "model.int8.onnx"
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_INFO = "tokenizer_info.json"


def read_tokenizer_info(exported: Path) -> TokenizerInfo:
    return TokenizerInfo.model_validate_json((exported / TOKENIZER_INFO).read_text(encoding="utf-8"))

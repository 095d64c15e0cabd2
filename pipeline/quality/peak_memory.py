"""Peak memory of one model in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdc.artifact.manifest import Device, Second, TaskInfo, TokenizerInfo
from kdc.common.errors import KdcError
from kdc.common.frozen import Frozen
from kdc.common.memory import own_peak_memory_bytes
from kdc.serving.engine.tokenizing import Text

if TYPE_CHECKING:
    from kdc.serving.engine.engine import Engine


class ModelFiles(Frozen):
    model: Path  # ONNX file, or folder of `save_pretrained`
    tokenizer_json: Path
    tokenizer: TokenizerInfo
    task: TaskInfo
    second: tuple[Second, Path] | None = None  # of a cascade, with its ONNX file

    def engine(self, *, temperature: float = 1.0, device: Device = "cpu") -> Engine:
        from kdc.serving.engine.engine import Engine  # imported here: it would add to a torch model's peak

        return Engine.from_files(
            self.model,
            self.tokenizer_json,
            task=self.task,
            tokenizer_info=self.tokenizer,
            temperature=temperature,
            device=device,
            second=self.second,
        )


class _Request(Frozen):
    files: ModelFiles
    texts: tuple[Text, ...]


def peak_memory_bytes(files: ModelFiles, texts: Sequence[Text]) -> int:
    """Peak resident memory of a fresh process that answers `texts` in one batch. Raises KdcError if it fails."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kdc.pipeline.quality.peak_memory"],  # -P: no modules from the current folder
        input=_Request(files=files, texts=tuple(texts)).model_dump_json(),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise KdcError("cannot measure a model's memory", given=done.stderr.strip()[-500:], remedy="see `kdc doctor`")
    return int(done.stdout.strip().splitlines()[-1])


def _main() -> None:
    request = _Request.model_validate_json(sys.stdin.read())
    if request.files.model.is_dir():
        _answer_with_torch(request.files, request.texts)
    else:
        request.files.engine().predict(request.texts, batch_size=len(request.texts))
    sys.stdout.write(f"{own_peak_memory_bytes()}\n")


def _answer_with_torch(files: ModelFiles, texts: Sequence[Text]) -> None:
    import torch

    from kdc.pipeline.models.opening import open_classifier
    from kdc.serving.engine.long_texts import spread
    from kdc.serving.engine.tokenizing import RowTokenizer, pad

    model = open_classifier(files.model).eval()
    parts, _ = spread(RowTokenizer.read(files.tokenizer_json, files.tokenizer).encode(texts))
    for start in range(0, len(parts), len(texts)):  # windows need several passes
        feeds = pad(parts[start : start + len(texts)], files.tokenizer)
        with torch.inference_mode():
            model(**{name: torch.from_numpy(values) for name, values in feeds.items()})


if __name__ == "__main__":
    _main()

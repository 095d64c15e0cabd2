"""Imports only numpy, onnxruntime and tokenizers, to start fast and stay small."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from kdc.artifact.folder import load_manifest, read_contents
from kdc.artifact.manifest import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Device,
    Manifest,
    Second,
    TaskInfo,
    TokenizerInfo,
    Variant,
)
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.errors import InputError, KdcError
from kdc.common.memory import release_free_memory
from kdc.serving.engine.deciding import decided, in_words, sets_in_words, sureness
from kdc.serving.engine.long_texts import Encoded, Part, Tokens, joined, spread
from kdc.serving.engine.passes import Passes
from kdc.serving.engine.providers import OpenSession, check_graph, device_of, open_session, read_graph
from kdc.serving.engine.tokenizing import RowTokenizer, Text, checked_rows

__all__ = ["Engine", "Text", "activate"]

_WARM_ROWS = 8
_ACTIVATED_AT_ONCE = 65_536  # numbers: bounds the float64 copies
_WINDOWS_AT_ONCE = 32


class Engine:
    """A loaded classifier: texts in, probabilities out. Thread-safe.

        with kdc.load("runs/sst2/artifact") as engine:
            engine.labels  # ("negative", "positive")
            engine.predict(["a gripping film", "dull"])  # float32 (2, 2), rows sum to 1

    A pair task takes tuples: `engine.predict([("Who wrote it?", "It was written in 1911.")])`.

    Attributes:
        task: kind, labels, and whether a row is a pair.
        tokenizer_info: how rows are cut and padded.
        temperature: divides the logits before softmax or sigmoid; 1 if the graph does so.
        provider: the execution provider in use, e.g. "CPUExecutionProvider".
        threads: size of ONNX Runtime's thread pool.
        lanes: parallel `run_beside` passes, which share the threads.
        second: engine of a cascade's second model, or None. `run` and `run_beside` ignore it.
        share_that_goes_on: share of the tuning rows that the second model answers.
        notes: messages for people, such as a fallback to the CPU.
        variant: the variant's name; "" without an artifact.
        manifest: None without an artifact.
    """

    def __init__(
        self,
        opened: OpenSession,
        tokenizer: RowTokenizer,
        task: TaskInfo,
        tokenizer_info: TokenizerInfo,
        temperature: float = 1.0,
        *,
        variant: str = "",
        manifest: Manifest | None = None,
        lanes: int = 1,
    ) -> None:
        check_graph(opened.session, task, tokenizer_info)
        self.task = task
        self.tokenizer_info = tokenizer_info
        self.temperature = temperature
        self.provider = opened.provider
        self.threads = opened.threads
        self.notes = opened.notes
        self.variant = variant
        self.manifest = manifest
        self.lanes = lanes
        self.second: Engine | None = None
        self.share_that_goes_on = 0.0
        self._answered_from = np.float64(0)
        self._made_up: Iterator[bool] | None = None
        self._tokenizer = tokenizer
        self._passes = Passes(opened, tokenizer_info, task.outputs, lanes=lanes, variant=variant)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        variant: str | None = None,
        device: Device = "auto",
        threads: int | None = None,
        lanes: int = 1,
        verify: bool = True,
        expect_sha256: str | None = None,
    ) -> Self:
        """Load an artifact's folder, as `kdc.load` does.

        Args:
            lanes: parallel `run_beside` passes; a GPU has one. With more, a second session holds its own weights,
                and `run` times whether all threads or one lane's share is faster.
            verify: check the SHA-256 of each loaded file.
        """
        folder = Path(path).resolve()  # resolved once: a link may change
        manifest = load_manifest(folder, verify=False, expect_sha256=expect_sha256)
        variants: dict[str, Variant] = {str(name): value for name, value in manifest.variants.items()}
        if variant is not None and variant not in variants:
            raise InputError("the artifact has no such variant", given=variant, remedy=f"it has: {', '.join(variants)}")

        def variant_for(provider: str) -> str:
            if provider == TENSORRT_PROVIDER:  # one variant for both GPU providers
                provider = CUDA_PROVIDER
            return variant or manifest.providers.get(provider, manifest.providers[CPU_PROVIDER])

        def read(path: Path) -> bytes:
            return read_contents(path, manifest, verify=verify)

        opened = open_session(
            lambda provider: folder / variants[variant_for(provider)].file, device=device, threads=threads, read=read
        )
        name, task = variant_for(opened.provider), manifest.task
        chosen_for = {choice.variant for choice in (*task.points, task.abstain, task.sets) if choice is not None}
        if others := sorted(chosen_for - {name, ""}):
            note = f"the thresholds were chosen for {', '.join(others)} and are used for {name}"
            opened = replace(opened, notes=(*opened.notes, note))
        engine = cls(
            opened,
            RowTokenizer.read(folder / "tokenizer.json", manifest.tokenizer, read),
            task,
            manifest.tokenizer,
            manifest.temperature,
            variant=name,
            manifest=manifest,
            lanes=min(lanes, opened.threads) if opened.provider == CPU_PROVIDER else 1,
        )
        if (second := variants[name].second) is not None:
            try:
                engine._add(second, folder / second.file, read)
            except KdcError as error:
                if device != "auto" or opened.provider == CPU_PROVIDER:
                    raise
                on_cpu = cls.load(
                    folder,
                    variant=variant,
                    device="cpu",
                    threads=threads,
                    lanes=lanes,
                    verify=verify,
                    expect_sha256=expect_sha256,
                )
                on_cpu.notes = (f"running on the CPU: {error.what}: {error.given}", *on_cpu.notes)
                return on_cpu
        return engine

    @classmethod
    def from_files(
        cls,
        onnx_path: Path,
        tokenizer_json: Path,
        *,
        task: TaskInfo,
        tokenizer_info: TokenizerInfo,
        temperature: float = 1.0,
        device: Device = "cpu",
        threads: int | None = None,
        second: tuple[Second, Path] | None = None,
    ) -> Self:
        """Load ONNX files without an artifact."""
        opened = open_session(lambda _: onnx_path, device=device, threads=threads)
        engine = cls(opened, RowTokenizer.read(tokenizer_json, tokenizer_info), task, tokenizer_info, temperature)
        if second is not None:
            engine._add(*second)
        return engine

    def _add(self, second: Second, path: Path, read: Callable[[Path], bytes] = read_graph) -> None:
        opened = open_session(lambda _: path, device=device_of(self.provider), threads=self.threads, read=read)
        self._answered_from, self.share_that_goes_on = np.float64(second.answered_from), second.share
        self.second = Engine(
            opened,
            self._tokenizer,
            self.task,
            self.tokenizer_info.model_copy(update={"token_type_ids": second.token_type_ids}),
            second.temperature,
            variant=second.name,
            lanes=self.lanes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory. Running forward passes finish; later calls fail."""
        self._passes.close()
        if self.second is not None:
            self.second.close()
        release_free_memory()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in output order; empty for regression."""
        return self.task.labels

    def predict(self, texts: Sequence[Text], *, batch_size: int = 32) -> np.ndarray:
        """Calibrated probabilities of texts; for regression the predicted numbers.

        Args:
            texts: texts, or tuples (text, text) for a pair task.
            batch_size: rows or windows in one forward pass. A row with more windows raises it, up to 32.

        Returns:
            float32 (rows, outputs). Classification rows sum to 1; multi-label outputs are each in [0, 1].

        Raises:
            InputError: a row does not fit the task.
            KdcError: the model failed, gave NaN or infinity, or is closed.
        """
        return self.activated(self.logits(texts, batch_size=batch_size))

    def activated(self, logits: np.ndarray) -> np.ndarray:
        """Convert logits to what `predict` returns."""
        outputs = activate(logits, self.task.kind, self.temperature)
        if self.task.traits.has_labels:
            return outputs
        return (outputs * self.task.spread + self.task.center).astype(np.float32)

    def decided(self, probabilities: np.ndarray) -> list[Any]:
        """Label of each row from probabilities (rows, outputs), not of a regression. A list of labels if multi-label.

        An abstention is `kdc.artifact.decision.ABSTAINED`.
        """
        return in_words(decided(probabilities, self.task), self.task)

    def label_sets(self, probabilities: np.ndarray) -> list[list[str]]:
        """Set of labels of each row from probabilities (rows, outputs), most probable first.

        Raises:
            InputError: the artifact has no sets.
        """
        if self.task.sets is None:
            raise InputError(
                "the artifact has no sets of labels",
                given=self.task.name,
                remedy="make one that has: kdc compress --set operating.sets=0.95",
            )
        return sets_in_words(probabilities, self.task)

    def logits(self, texts: Sequence[Text], *, batch_size: int = 32) -> np.ndarray:
        """The graph's outputs, before `temperature` and scale: float32 (rows, outputs). Arguments as in `predict`.

        `of_second` has scaled the logits of a cascade's second model.
        """
        encodings = self.encode(texts)
        most_windows = max(spread(encodings)[1], default=1)
        at_once = max(batch_size, min(most_windows, _WINDOWS_AT_ONCE))

        def in_batches(engine: Engine, parts: Sequence[Part]) -> np.ndarray:
            if 0 < len(parts) <= at_once:
                return engine.run(parts)
            result = np.zeros((len(parts), engine.task.outputs), dtype=np.float32)
            order = np.argsort([len(part) for part in parts], kind="stable").tolist()
            for start in range(0, len(order), at_once):
                rows = order[start : start + at_once]
                result[rows] = engine.run([parts[row] for row in rows])
            return result

        return self.through(encodings, in_batches)

    def through(
        self, encodings: Sequence[Encoded], answer: Callable[["Engine", Sequence[Part]], np.ndarray]
    ) -> np.ndarray:
        """Logits (rows, outputs). `answer` gives one engine's logits of rows or windows, in order."""
        parts, counts = spread(encodings)
        logits = self.joined(answer(self, parts), counts)
        unsure = self.unsure(logits)
        if self.second is not None and len(unsure):
            parts, counts = spread([encodings[row] for row in unsure])
            logits[unsure] = self.of_second(self.joined(answer(self.second, parts), counts))
        return logits

    def joined(self, logits: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Turn logits (parts, outputs) into (rows, outputs)."""
        long = self.tokenizer_info.long
        return logits if long is None else joined(logits, counts, long.join, self.task.kind)

    def unsure(self, logits: np.ndarray) -> np.ndarray:
        """Indices of rows for a cascade's second model."""
        if self.second is None:
            return np.zeros(0, dtype=np.int64)
        if self._made_up is not None:
            return np.flatnonzero([next(self._made_up) for _ in logits])
        sure = sureness(activate(logits, self.task.kind, self.temperature), self.task)
        return np.flatnonzero(sure < self._answered_from)

    def expect_made_up_rows(self) -> None:
        """For made-up rows: send the tuning set's share to the second model."""
        share = self.share_that_goes_on
        self._made_up = (math.floor((row + 1) * share) > math.floor(row * share) for row in itertools.count())

    def of_second(self, logits: np.ndarray) -> np.ndarray:
        """Scale the second model's logits to this model's temperature."""
        assert self.second is not None
        return logits * np.float32(self.temperature / self.second.temperature)

    def encode(
        self, texts: Sequence[Text], *, side: str | None = None, first: int = 0, beside: bool = False
    ) -> list[Encoded]:
        """Tokenise rows, and cut long texts at `side` ("left" or "right"; None: the artifact's). No padding.

        See `RowTokenizer.encode`.
        """
        return self._tokenizer.cutting(side).encode(checked_rows(texts, self.task, first), first, beside=beside)

    def chars_read(self, rows: Sequence[Text]) -> list[int]:
        return self._tokenizer.chars_read(rows)

    def has_cut(self, side: str | None) -> bool:
        return self._tokenizer.has_cut(side)

    def warm_up(self, max_batch_tokens: int = 1024) -> None:
        """First requests must not wait for memory.

        `max_batch_tokens`: padded tokens of the largest pass, whose memory stays.
        """
        short = self.encode([("a", "a") if self.task.is_pair else "a"])[0]
        word_id = short.ids[len(short) // 2]
        lengths = [8 * 2**power for power in range(12) if 8 * 2**power < self.tokenizer_info.max_length]
        for length in [*lengths, self.tokenizer_info.max_length]:
            long = Tokens([word_id] * length, [0] * length)
            self._passes.run_with_all_threads([long])  # `run` may try the other session
            self.run_beside([long] * max(1, min(_WARM_ROWS, max_batch_tokens // length)))
        self._passes.run_with_all_threads([short])
        if self.second is not None:
            self.second.warm_up(max_batch_tokens)

    def run(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """Logits (rows, outputs) of at least one row, with all threads. Raises as `predict`."""
        return self._in_rows(self._passes.run(encodings), encodings)

    def run_beside(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """`run` with a share of the threads."""
        return self._in_rows(self._passes.run_beside(encodings), encodings)

    def _in_rows(self, logits: np.ndarray, encodings: Sequence[Encoded]) -> np.ndarray:
        return self.joined(logits, spread(encodings)[1])


def activate(logits: np.ndarray, kind: Kind, temperature: float = 1.0) -> np.ndarray:
    """Softmax or sigmoid (multi-label) of logits / temperature, as float32."""
    result, traits = logits.astype(np.float32), KINDS[kind]
    if not traits.has_labels:
        return result
    step = max(1, _ACTIVATED_AT_ONCE // max(1, logits.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, len(logits), step)):
        scaled = logits[rows].astype(np.float64) / temperature
        if not traits.is_exclusive:
            result[rows] = 0.5 * (1.0 + np.tanh(0.5 * scaled))  # the sigmoid, without overflow
            continue
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        result[rows] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result

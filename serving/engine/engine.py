"""Texts in, probabilities out: the code that serves, and that the pipeline measures with.

Reads an artifact (or a bare ONNX file and `tokenizer.json`); writes nothing; imports nothing of the web.
It needs numpy, onnxruntime and tokenizers only, so that a server starts fast and small.
"""

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
    Kind,
    Manifest,
    Second,
    TaskInfo,
    TokenizerInfo,
    Variant,
)
from kdc.common.errors import InputError, KdcError
from kdc.common.memory import release_free_memory
from kdc.serving.engine.deciding import decided, in_words, sets_in_words, sureness
from kdc.serving.engine.long_texts import Encoded, Part, Tokens, joined, spread
from kdc.serving.engine.passes import Passes
from kdc.serving.engine.providers import OpenSession, check_graph, device_of, open_session, read_graph
from kdc.serving.engine.tokenizing import RowTokenizer, Text, checked_rows

__all__ = ["Engine", "Text", "activate"]

_WARM_ROWS = 8
_ACTIVATED_AT_ONCE = 65_536  # numbers: in double precision a few times as many bytes as that
_WINDOWS_AT_ONCE = 32  # of one row in a forward pass, however few rows are to share one


class Engine:
    """A compressed classifier, loaded and ready: texts in, probabilities out. Several threads may call it at once.

        import kdc

        with kdc.load("runs/sst2/artifact") as engine:
            engine.labels  # ("negative", "positive")
            engine.predict(["a gripping film", "dull"])  # float32 (2, 2), a column for each label, rows sum to 1
            engine.logits(["dull"])  # float32 (1, 2), the model's raw outputs

    A pair task takes pairs of texts: `engine.predict([("Who wrote it?", "It was written in 1911.")])`. Loading verifies
    the artifact's files first. A small student (3 layers, int8) takes about a millisecond a text on two CPU cores.
    `close`, or the end of the `with` block, frees the model's memory.

    Attributes:
        task: kind, labels, and whether a row is a pair.
        tokenizer_info: how rows are cut and padded.
        temperature: logits are divided by it before softmax or sigmoid.
        provider: the execution provider that took effect, e.g. "CPUExecutionProvider".
        threads: size of ONNX Runtime's thread pool.
        lanes: how many passes may run at once by `run_beside`, sharing the threads.
        second: the engine of a cascade's second model, which answers the rows that this one is not sure of; None if
            there is one model. `run` and `run_beside` ask the first model alone, `through` asks both.
        share_that_goes_on: share of the tuning slice's rows that the second model answers.
        notes: what a person should know about the start, such as a fallback to the CPU.
        variant: name of the variant; "" without an artifact.
        manifest: the artifact's manifest; None without an artifact.
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
        self._made_up: Iterator[bool] | None = None  # whether each made-up row goes on
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
        """Load an artifact.

        Args:
            path: the artifact's folder.
            variant: "fp32", "int8", "fp16" or, of two models, "cascade"; None takes the manifest's choice for the
                provider.
            device: "auto" takes CUDA if it really starts, else the CPU, with a note; "cuda" and "tensorrt" fail if they
                do not start; or "cpu".
            threads: threads of one forward pass; None takes all cores that this process may use.
            lanes: how many passes may run at once by `run_beside`, each with its share of the threads. Several lanes
                take a second session with the memory of its weights, and `run` times whether all threads or one share
                is faster, as beside another process. A GPU always has one lane.
            verify: check the SHA-256 of each file that is loaded. It is read once.
            expect_sha256: refuse any artifact but the one whose manifest has this SHA-256.

        Raises:
            InputError: no artifact there, not the expected one, or no such variant or device.
            KdcError: the artifact is damaged, or the device that was asked for did not take effect.
        """
        folder = Path(path).resolve()  # once, since a link may lead elsewhere a moment later
        manifest = load_manifest(folder, verify=False, expect_sha256=expect_sha256)
        variants: dict[str, Variant] = {str(name): value for name, value in manifest.variants.items()}
        if variant is not None and variant not in variants:
            raise InputError("the artifact has no such variant", given=variant, remedy=f"it has: {', '.join(variants)}")

        def variant_for(provider: str) -> str:
            if provider == TENSORRT_PROVIDER:  # the manifest names one variant for both of the GPU's providers
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
        """Load a bare ONNX file, and that of a cascade's `second` model, to measure before there is an artifact.

        Raises:
            KdcError: a file cannot be read, the graph does not fit the task or the tokenizer, or the device that was
                asked for did not take effect.
        """
        opened = open_session(lambda _: onnx_path, device=device, threads=threads)
        engine = cls(opened, RowTokenizer.read(tokenizer_json, tokenizer_info), task, tokenizer_info, temperature)
        if second is not None:
            engine._add(*second)
        return engine

    def _add(self, second: Second, path: Path, read: Callable[[Path], bytes] = read_graph) -> None:
        """Open a cascade's second model on the first one's device."""
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
        """Free the memory of the model. Forward passes that other threads have begun end as usual; later calls fail."""
        self._passes.close()
        if self.second is not None:
            self.second.close()
        release_free_memory()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty for regression."""
        return self.task.labels

    def predict(self, texts: Sequence[Text], *, batch_size: int = 32) -> np.ndarray:
        """Calibrated probabilities of texts; for regression the predicted numbers.

        Args:
            texts: any number of texts; for a pair task, of (text, text).
            batch_size: rows in one forward pass, or windows of long ones. If a row has more windows than that, passes
                have as many as it has, up to 32.

        Returns:
            float32 (rows, outputs), in the order of `texts`. Rows of a classification sum to 1; each output of a
            multi-label task is between 0 and 1.

        Raises:
            InputError: a row is not what the task expects.
            KdcError: the model failed, gave NaN or infinity, or is closed.
        """
        return self.activated(self.logits(texts, batch_size=batch_size))

    def activated(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits into what `predict` returns: calibrated probabilities, or numbers in the labels' unit."""
        outputs = activate(logits, self.task.kind, self.temperature)
        if self.task.kind == "regression":  # the model answers in standard deviations from the mean
            return (outputs * self.task.spread + self.task.center).astype(np.float32)
        return outputs

    def decided(self, probabilities: np.ndarray) -> list[Any]:
        """The label of each row by the artifact's operating points, or the list of a multi-label row's labels;
        `kdc.artifact.decision.ABSTAINED` if the artifact does not answer the row. Probabilities are (rows, outputs) as
        `predict` gives them, not of a regression."""
        return in_words(decided(probabilities, self.task), self.task)

    def label_sets(self, probabilities: np.ndarray) -> list[list[str]]:
        """The set of labels of each row, the most probable first, which holds the true one as often as the artifact's
        manifest says (`task.sets`). Probabilities are (rows, outputs) as `predict` gives them.

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
        """The model's raw outputs, before temperature and scale: float32 (rows, outputs). Those of a cascade's second
        model are in the first one's scale. Arguments as of `predict`."""
        encodings = self.encode(texts)
        most_windows = max(spread(encodings)[1], default=1)
        at_once = max(batch_size, min(most_windows, _WINDOWS_AT_ONCE))

        def in_batches(engine: Engine, parts: Sequence[Part]) -> np.ndarray:
            if 0 < len(parts) <= at_once:
                return engine.run(parts)
            result = np.zeros((len(parts), engine.task.outputs), dtype=np.float32)
            # Rows of like length share a batch, so that little is computed on padding.
            order = np.argsort([len(part) for part in parts], kind="stable").tolist()
            for start in range(0, len(order), at_once):
                rows = order[start : start + at_once]
                result[rows] = engine.run([parts[row] for row in rows])
            return result

        return self.through(encodings, in_batches)

    def through(
        self, encodings: Sequence[Encoded], answer: Callable[["Engine", Sequence[Part]], np.ndarray]
    ) -> np.ndarray:
        """Logits (rows, outputs) of rows; in a cascade each row's are from the model that answers it.

        Args:
            encodings: as `encode` gives them.
            answer: asks one engine: its logits of what forward passes take, rows or their windows, in order.
        """
        parts, counts = spread(encodings)
        logits = self.joined(answer(self, parts), counts)
        unsure = self.unsure(logits)
        if self.second is not None and len(unsure):
            parts, counts = spread([encodings[row] for row in unsure])
            logits[unsure] = self.of_second(self.joined(answer(self.second, parts), counts))
        return logits

    def joined(self, logits: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Join the logits of rows' windows (parts, outputs) into logits (rows, outputs). `counts` has each row's number
        of parts."""
        long = self.tokenizer_info.long
        return logits if long is None else joined(logits, counts, long.join, self.task.kind)

    def unsure(self, logits: np.ndarray) -> np.ndarray:
        """Indices of the rows that go on to a cascade's second model, by the first one's logits (rows, outputs); none
        if there is one model."""
        if self.second is None:
            return np.zeros(0, dtype=np.int64)
        if self._made_up is not None:
            return np.flatnonzero([next(self._made_up) for _ in logits])
        sure = sureness(activate(logits, self.task.kind, self.temperature), self.task)
        return np.flatnonzero(sure < self._answered_from)

    def expect_made_up_rows(self) -> None:
        """From now on send on the tuning slice's share of rows, spread evenly. No model can be sure of rows that are
        made up for timing: all would go on, or none."""
        share = self.share_that_goes_on
        self._made_up = (math.floor((row + 1) * share) > math.floor(row * share) for row in itertools.count())

    def of_second(self, logits: np.ndarray) -> np.ndarray:
        """The second model's logits (rows, outputs) in the first one's scale, so that one temperature is for both."""
        assert self.second is not None
        return logits * np.float32(self.temperature / self.second.temperature)

    def encode(
        self, texts: Sequence[Text], *, side: str | None = None, first: int = 0, beside: bool = False
    ) -> list[Encoded]:
        """Tokenise rows and cut them to the maximum length, or divide them into windows of it, without padding.

        `side` is where long texts are cut, "left" or "right"; None is the artifact's own side. Other arguments as of
        `predict` and `RowTokenizer.encode`.

        Raises:
            InputError: a row is not what the task takes, or has no token.
        """
        return self._tokenizer.cutting(side).encode(checked_rows(texts, self.task, first), first, beside=beside)

    def chars_read(self, rows: Sequence[Text]) -> list[int]:
        """About how many characters of each row `encode` has to look at."""
        return self._tokenizer.chars_read(rows)

    def has_cut(self, side: str | None) -> bool:
        """Whether `encode` with this side starts at once; the first one with the other side makes a tokenizer."""
        return self._tokenizer.has_cut(side)

    def warm_up(self, max_batch_tokens: int = 1024) -> None:
        """Run inputs of all lengths once, so that the first requests do not wait for ONNX Runtime to allocate memory.

        Args:
            max_batch_tokens: padded tokens of the largest pass to come. What is allocated for a pass stays allocated.
        """
        short = self.encode([("a", "a") if self.task.is_pair else "a"])[0]
        word_id = short.ids[len(short) // 2]
        lengths = [8 * 2**power for power in range(12) if 8 * 2**power < self.tokenizer_info.max_length]
        for length in [*lengths, self.tokenizer_info.max_length]:
            long = Tokens([word_id] * length, [0] * length)
            self._passes.run_with_all_threads([long])  # not `run`, which may try the other session at this length
            self.run_beside([long] * max(1, min(_WARM_ROWS, max_batch_tokens // length)))
        self._passes.run_with_all_threads([short])
        if self.second is not None:
            self.second.warm_up(max_batch_tokens)

    def run(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """Run at least one row, padded to the longest, in one pass that has the threads for itself: float32 logits
        (rows, outputs).

        Raises:
            KdcError: the model failed, gave NaN or infinity, or is closed.
        """
        return self._in_rows(self._passes.run(encodings), encodings)

    def run_beside(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """`run` with a share of the threads: `lanes` such calls at once do more than as many `run` in turn."""
        return self._in_rows(self._passes.run_beside(encodings), encodings)

    def _in_rows(self, logits: np.ndarray, encodings: Sequence[Encoded]) -> np.ndarray:
        """Logits (rows, outputs) of a pass, in which each window of a row has logits of its own."""
        return self.joined(logits, spread(encodings)[1])


def activate(logits: np.ndarray, kind: Kind, temperature: float = 1.0) -> np.ndarray:
    """Softmax (classification) or sigmoid (multi-label) of logits (rows, outputs) / temperature, as float32; regression
    stays as it is."""
    result = logits.astype(np.float32)
    if kind == "regression":
        return result
    step = max(1, _ACTIVATED_AT_ONCE // max(1, logits.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, len(logits), step)):
        scaled = logits[rows].astype(np.float64) / temperature
        if kind == "multilabel":
            result[rows] = 0.5 * (1.0 + np.tanh(0.5 * scaled))  # the sigmoid, without overflow
            continue
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        result[rows] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result

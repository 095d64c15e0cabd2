"""Two models in one artifact: every row is answered by the one that numpy says, wherever it is asked."""

import asyncio
import contextlib
import csv
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import PAIR, SINGLE, expected_logits, make_graph, write_artifact
from live import running
from numpy.typing import NDArray
from pydantic import ValidationError
from typer.testing import CliRunner

from kdc.artifact import folder as folder_module
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import Manifest, Second, TaskInfo, Variant
from kdc.cli import app
from kdc.common.errors import KdcError
from kdc.serving.engine import engine as engine_module
from kdc.serving.engine.deciding import sureness
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.providers import OpenSession, open_session
from kdc.serving.http.model import Model
from kdc.serving.http.queue import Overloaded
from kdc.serving.http.settings import ServeSettings

TEXTS = [f"w{n} w{m}" for n in range(20) for m in (1, 7)]
PAIRS = [(f"w{n} w2", f"w{n}") for n in range(20)]
FROM = 0.7
FIRST_T, SECOND_T = 0.5, 1.5
OTHER = -0.7  # the second model's logits are so many times the graph's: it answers nearly all rows otherwise


def with_second(folder: Path, answered_from: float = FROM, *, typed: bool = False) -> Path:
    """Give an artifact a second model and the variant `cascade`, which a CPU loads."""
    make_graph(folder / "second.onnx", OTHER, typed=typed)
    manifest = load_manifest(folder)
    second = Second(
        name="the other",
        file="second.onnx",
        token_type_ids=typed,
        temperature=SECOND_T,
        answered_from=answered_from,
        share=0.5,
    )
    variants = {**manifest.variants, "cascade": Variant(file="model.onnx", second=second, size_bytes=1, opset=17, ir=8)}
    changes: dict[str, Any] = {
        "variants": variants,
        "files": manifest.files | describe_files(folder, ["second.onnx"]),
        "providers": {**manifest.providers, "CPUExecutionProvider": "cascade"},
    }
    write_manifest(folder, manifest.model_copy(update=changes))
    return folder


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def by_hand(texts: Sequence[Any], *, typed: bool = False) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Probabilities, and which rows go on."""
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    first = softmax(np.stack([expected_logits(*row) for row in rows]) / FIRST_T)
    second = softmax(np.stack([expected_logits(*row, scale=OTHER, typed=typed) for row in rows]) / SECOND_T)
    goes_on = first.max(axis=1) < FROM
    return np.where(goes_on[:, None], second, first), goes_on


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_second(write_artifact(tmp_path_factory.mktemp("cascade") / "mood", temperature=FIRST_T))


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[str]:
    with running(f"mood={artifact}") as url:
        yield url


def test_the_rows_of_this_file_are_answered_by_both_models() -> None:
    _, goes_on = by_hand(TEXTS)
    assert 5 <= goes_on.sum() <= len(TEXTS) - 5


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_row_has_the_answer_of_its_model_in_any_batch(artifact: Path, batch_size: int) -> None:
    """Would catch rows put back at other places, and a second model read by the first one's temperature."""
    expected, _ = by_hand(TEXTS)
    with Engine.load(artifact, device="cpu", threads=1) as engine:
        assert engine.variant == "cascade"
        np.testing.assert_allclose(engine.predict(TEXTS, batch_size=batch_size), expected, atol=1e-5)


def test_the_second_model_may_take_token_types_that_the_first_does_not(tmp_path: Path) -> None:
    folder = with_second(write_artifact(tmp_path / "nli", PAIR, temperature=FIRST_T), typed=True)
    expected, goes_on = by_hand(PAIRS, typed=True)
    assert 0 < goes_on.sum() < len(PAIRS)
    with Engine.load(folder, device="cpu", threads=1) as engine:
        np.testing.assert_allclose(engine.predict(PAIRS), expected, atol=1e-5)


def test_a_variant_that_is_asked_for_is_one_model(artifact: Path) -> None:
    with Engine.load(artifact, variant="fp32", device="cpu", threads=1) as engine:
        expected = softmax(np.stack([expected_logits(text) for text in TEXTS]) / FIRST_T)
        np.testing.assert_allclose(engine.predict(TEXTS), expected, atol=1e-5)


def test_kdc_predict_asks_both(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sentence\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    paths = (str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    done = CliRunner().invoke(app, ["predict", str(artifact), *paths, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected, _ = by_hand(TEXTS)
    assert [row["label"] for row in rows] == [SINGLE.labels[place] for place in expected.argmax(axis=1)]
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.max(axis=1), atol=1e-5)


def test_the_service_asks_both_and_tells_so(service: str) -> None:
    expected, goes_on = by_hand(TEXTS)
    answered = httpx2.post(f"{service}/predict", json={"inputs": [[text] for text in TEXTS]}).json()
    for scores, row in zip(answered, expected, strict=True):
        by_label = {each["label"]: each["score"] for each in scores}
        np.testing.assert_allclose([by_label[label] for label in SINGLE.labels], row, atol=1e-5)
    assert httpx2.get(f"{service}/info").json()["second_model"] == "the other"
    lines = httpx2.get(f"{service}/metrics").text.splitlines()
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert counted['kdc_batch_rows_sum{model="mood/second"}'] == goes_on.sum()
    assert counted['kdc_batch_rows_sum{model="mood"}'] == counted['kdc_rows_total{model="mood"}'] == len(TEXTS)


def test_sure_rows_do_not_wait_for_the_second_model(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch one queue for both models: the sure row would be answered after the unsure one."""
    _, goes_on = by_hand(TEXTS)
    unsure, sure = TEXTS[int(np.flatnonzero(goes_on)[0])], TEXTS[int(np.flatnonzero(~goes_on)[0])]
    engine = Engine.load(artifact, device="cpu", threads=1)
    assert engine.second is not None
    goes, asked = threading.Event(), threading.Event()

    def slowly(run: Callable[[Any], Any], encodings: Any) -> Any:
        asked.set()
        assert goes.wait(20)
        return run(encodings)

    for name in ("run", "run_beside"):
        method = getattr(engine.second, name)
        monkeypatch.setattr(engine.second, name, lambda encodings, method=method: slowly(method, encodings))

    async def both() -> None:
        model = Model("mood", engine, ServeSettings(artifact=str(artifact), device="cpu"))
        waiting = asyncio.create_task(model.answer([unsure]))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(model.answer([sure]), 10)
        np.testing.assert_allclose(answer.probabilities, by_hand([sure])[0], atol=1e-5)
        assert not waiting.done()
        goes.set()
        np.testing.assert_allclose((await waiting).probabilities, by_hand([unsure])[0], atol=1e-5)
        await model.close()

    asyncio.run(both())


def test_where_the_second_model_does_not_start_on_the_gpu_both_run_on_the_cpu(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a start that fails, or one that forgets what was asked for. The GPU is made up."""

    def opened(file_for: Any, *, device: str, **how: Any) -> OpenSession:
        if device == "cuda":
            raise KdcError("CUDA did not take effect", given="no memory")
        session = open_session(file_for, device="cpu", **how)
        return session if device == "cpu" else dataclasses.replace(session, provider="CUDAExecutionProvider")

    monkeypatch.setattr(engine_module, "open_session", opened)
    with Engine.load(artifact, variant="cascade", device="auto", threads=2, lanes=2) as engine:
        assert (engine.provider, engine.variant, engine.lanes) == ("CPUExecutionProvider", "cascade", 2)
        assert "no memory" in engine.notes[0]
        np.testing.assert_allclose(engine.predict(TEXTS), by_hand(TEXTS)[0], atol=1e-5)
    with pytest.raises(KdcError, match="CUDA did not"):
        Engine.load(artifact, variant="cascade", device="cuda", threads=1)


def test_a_gpu_that_was_asked_for_and_takes_the_first_model_alone_is_no_start(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a service on the CPU that was to run on the GPU."""

    def opened(file_for: Any, *, device: str, **how: Any) -> OpenSession:
        if file_for("CUDAExecutionProvider").name == "second.onnx":
            raise KdcError("CUDA did not take effect", given="no memory")
        return dataclasses.replace(open_session(file_for, device="cpu", **how), provider="CUDAExecutionProvider")

    monkeypatch.setattr(engine_module, "open_session", opened)
    with pytest.raises(KdcError, match="no memory"):
        Engine.load(artifact, variant="cascade", device="cuda", threads=1)


def test_a_changed_second_model_is_refused(tmp_path: Path) -> None:
    folder = with_second(write_artifact(tmp_path / "mood"))
    make_graph(folder / "second.onnx", OTHER + 1e-3)
    with pytest.raises(KdcError, match="changed"):
        Engine.load(folder, device="cpu", threads=1)


def test_what_is_loaded_is_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a file that is opened again after its hash was compared: each is emptied as soon as it is read."""
    folder = with_second(write_artifact(tmp_path / "mood", temperature=FIRST_T))
    opened = folder_module.opened

    @contextlib.contextmanager
    def emptying(path: Path) -> Iterator[Any]:
        with opened(path) as file:
            yield file
        path.write_bytes(b"")

    monkeypatch.setattr(folder_module, "opened", emptying)
    with Engine.load(folder, device="cpu", threads=2, lanes=2) as engine:
        assert engine.lanes == 2
        encodings = engine.encode(TEXTS)
        for run in (Engine.run, Engine.run_beside):
            logits = engine.through(encodings, run)
            np.testing.assert_allclose(engine.activated(logits), by_hand(TEXTS)[0], atol=1e-5)


def test_a_manifest_lists_the_second_model(artifact: Path) -> None:
    document = load_manifest(artifact).model_dump()
    del document["files"]["second.onnx"]
    with pytest.raises(ValidationError, match="second"):
        Manifest.model_validate(document)


def test_a_number_has_no_second_model(artifact: Path) -> None:
    document = load_manifest(artifact).model_dump()
    document["task"] |= {"kind": "regression", "labels": ()}
    with pytest.raises(ValidationError, match="can have no second model"):
        Manifest.model_validate(document)


@pytest.mark.parametrize(("name", "gives"), [("int8", "cascade"), ("cascade", "fp32")])
def test_the_name_of_a_variant_says_how_many_models_it_is(artifact: Path, name: str, gives: str) -> None:
    document = load_manifest(artifact).model_dump()
    document["variants"][name]["second"] = document["variants"][gives]["second"]
    with pytest.raises(ValidationError, match="second model"):
        Manifest.model_validate(document)


@pytest.mark.parametrize("rows", [1, 5])
def test_of_made_up_rows_as_many_go_on_as_of_the_tuning_slice(artifact: Path, rows: int) -> None:
    """Would catch a bench, or a contract by length, of which all calls go on, or none."""
    with Engine.load(artifact, device="cpu", threads=1) as engine:
        assert engine.second is not None
        first, second = expected_logits("w1 w1"), expected_logits("w1 w1", scale=OTHER) * FIRST_T / SECOND_T
        engine.expect_made_up_rows()
        answered = np.concatenate([engine.logits(["w1 w1"] * rows) for _ in range(40 // rows)])
        by_first = np.isclose(answered, first, atol=1e-5).all(axis=1)
        by_second = np.isclose(answered, second, atol=1e-5).all(axis=1)
    assert (by_first.sum(), by_second.sum()) == (20, 20)  # the manifest's share is a half


def test_the_second_queue_refuses_before_the_first_model_answers(artifact: Path) -> None:
    """Would catch rows that are answered by the first model again and again while the second one has no room."""
    engine = Engine.load(artifact, device="cpu", threads=1)
    assert engine.second is not None
    goes, asked, passes = threading.Event(), threading.Event(), []
    held, own = engine.second.run, engine.run

    def slowly(encodings: Any) -> Any:
        asked.set()
        assert goes.wait(20)
        return held(encodings)

    def counted(encodings: Any) -> Any:
        passes.append(len(encodings))
        return own(encodings)

    engine.second.run = engine.second.run_beside = slowly  # type: ignore[method-assign]
    engine.run = engine.run_beside = counted  # type: ignore[method-assign]
    unsure = [text for text, goes_on in zip(TEXTS, by_hand(TEXTS)[1], strict=True) if goes_on]

    async def several() -> None:
        settings = ServeSettings(artifact=str(artifact), device="cpu", max_queue_tokens=60)
        model = Model("mood", engine, settings)
        waiting = [asyncio.create_task(model.answer(unsure[:1]))]
        while not asked.is_set():
            await asyncio.sleep(0.01)
        waiting += [asyncio.create_task(model.answer(unsure[:5])) for _ in range(3)]  # 60 tokens will wait
        while sum(passes) < 16:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            await model.answer(unsure[:10])
        assert sum(passes) == 16
        goes.set()
        await asyncio.gather(*waiting)
        await model.close()

    asyncio.run(several())


def test_a_multilabel_row_is_as_sure_as_its_least_sure_label() -> None:
    task = TaskInfo(name="tags", kind="multilabel", labels=("a", "b"))
    np.testing.assert_allclose(sureness(np.array([[0.9, 0.4], [0.01, 0.98]]), task), [0.6, 0.98])

"""The engine and its execution providers, against a hand-made graph whose answer numpy can give too."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bag_models import (
    INFO,
    PAD_ID,
    PAIR,
    SINGLE,
    TYPED,
    expected_logits,
    make_graph,
    write_artifact,
)

from kdc.artifact.decision import LabelSets
from kdc.artifact.folder import read_contents
from kdc.artifact.manifest import Kind, TaskInfo, TokenizerInfo
from kdc.common.cores import usable_cores
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine import engine as engine_module
from kdc.serving.engine import passes as passes_module
from kdc.serving.engine.engine import Engine, activate
from kdc.serving.engine.providers import open_session, run_bound
from kdc.serving.engine.tokenizing import pad


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_artifact(tmp_path_factory.mktemp("artifact"))
    make_graph(folder / "typed.onnx", typed=True)
    return folder


def bare(files: Path, task: TaskInfo = SINGLE, info: TokenizerInfo = INFO, model: str = "model.onnx") -> Engine:
    return Engine.from_files(files / model, files / "tokenizer.json", task=task, tokenizer_info=info, threads=1)


TEXTS = ["w1", "w5 w6 w7 w8 w9", "w2", "w3 w3", "unknown w2 w4"]


def test_logits_are_those_of_the_graph_computed_by_hand(files: Path) -> None:
    expected = np.stack([expected_logits(text) for text in TEXTS])
    np.testing.assert_allclose(bare(files).logits(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_order_is_kept_whatever_the_batch_size(files: Path, batch_size: int) -> None:
    expected = np.stack([expected_logits(text) for text in TEXTS * 3])
    np.testing.assert_allclose(bare(files).logits(TEXTS * 3, batch_size=batch_size), expected, atol=1e-5)


def test_pairs_carry_their_token_types(files: Path) -> None:
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6")]
    expected = np.stack([expected_logits(*pair, typed=True) for pair in pairs])
    np.testing.assert_allclose(bare(files, PAIR, TYPED, "typed.onnx").logits(pairs), expected, atol=1e-5)


def test_an_artifact_predicts_with_its_variant_and_temperature(files: Path) -> None:
    engine = Engine.load(files, device="cpu", threads=1)
    logits = np.stack([expected_logits(text, scale=1.01) for text in TEXTS]) / 2.0
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(engine.predict(TEXTS), expected, atol=1e-6)
    assert engine.predict(TEXTS).dtype == np.float32
    assert (engine.variant, engine.provider, engine.labels) == ("int8", "CPUExecutionProvider", SINGLE.labels)
    assert engine.manifest is not None
    assert engine.manifest.task == SINGLE


def test_lanes_give_the_same_answers_at_once(files: Path) -> None:
    engine = Engine.load(files, device="cpu", threads=4, lanes=2)
    assert engine.lanes == 2
    encodings = engine.encode(TEXTS)
    expected = np.stack([expected_logits(text, scale=1.01) for text in TEXTS])
    with ThreadPoolExecutor(2) as pool:
        for answer in pool.map(lambda _: engine.run_beside(encodings), range(40)):
            np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_pass_alone_takes_the_threads_that_are_faster(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside another process, threads that wait for each other are slower than one of them alone.
    engine = Engine.load(files, device="cpu", threads=4, lanes=2)
    encodings, passes, now = engine.encode(TEXTS), engine._passes, 0.0
    share, run = passes._beside, passes._run
    used = []

    def pass_(session: Any, encodings: Any) -> Any:
        nonlocal now
        now += 0.001 if session is share else 0.003
        used.append("a share" if session is share else "all")
        return run(session, encodings)

    monkeypatch.setattr(passes, "_run", pass_)
    monkeypatch.setattr(passes._pace, "_clock", lambda: now)
    expected = np.stack([expected_logits(text, scale=1.01) for text in TEXTS])
    for _ in range(100):
        np.testing.assert_allclose(engine.run(encodings), expected, atol=1e-5)
    assert used[0] == "all"
    assert set(used[-20:]) == {"a share"}
    assert passes._pace.threads == 2  # not all of them, under which a share was timed


@pytest.mark.parametrize(
    ("operator", "expected"), [(b"ReduceSum", [2, 2, 1]), (b"LayerNormalization", [5])], ids=["has", "has not"]
)
def test_a_model_with_the_operator_of_encoders_runs_in_short_passes(
    operator: bytes, expected: list[int], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes_module, "_LAYERS", operator)
    engine, texts, rows = bare(files), [f"w{number} w2 w3" for number in range(5)], list[int]()
    run = engine._passes._pass

    def counted(session: Any, encodings: Any) -> Any:
        rows.append(len(encodings))
        return run(session, encodings)

    monkeypatch.setattr(engine._passes, "_pass", counted)
    monkeypatch.setattr(passes_module, "PASS_TOKENS", 2 * len(engine.encode(texts)[0]))
    np.testing.assert_allclose(engine.logits(texts), [expected_logits(text) for text in texts], atol=1e-5)
    assert rows == expected


def test_a_pass_counts_with_its_padding(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = bare(files), list[int]()
    monkeypatch.setattr(engine._passes._pace, "step_ends", told.append)
    engine.run(encodings := engine.encode(TEXTS))
    assert told == [pad(encodings, INFO)["input_ids"].size]


@pytest.mark.parametrize(
    ("provider", "method"), [("CPUExecutionProvider", "run"), ("CUDAExecutionProvider", "io_binding")]
)
def test_a_pass_that_fails_tells_its_error_and_no_text(
    provider: str, method: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("w5 w6")

    engine = bare(files)
    monkeypatch.setattr(engine._passes, "_session", SimpleNamespace(**{method: fails}))
    monkeypatch.setattr(engine._passes, "_provider", provider)
    with pytest.raises(KdcError, match=f"MemoryError on {provider}") as caught:
        engine.logits(TEXTS)
    assert "w5" not in str(caught.value)


@pytest.mark.parametrize(
    ("threads", "lanes", "expected", "pools"),
    [(1, 4, 1, (1,)), (2, 4, 2, (2, 1)), (16, 4, 4, (16, 4)), (16, 1, 1, (16,))],
)
def test_lanes_share_the_threads_of_which_there_are_no_fewer(
    files: Path, threads: int, lanes: int, expected: int, pools: tuple[int, ...]
) -> None:
    engine = Engine.load(files, device="cpu", threads=threads, lanes=lanes)
    assert (engine.lanes, engine._passes._pace.choices) == (expected, pools)
    assert (engine._passes._beside is engine._passes._session) == (expected == 1)  # a second one takes memory


def test_a_variant_can_be_asked_for(files: Path) -> None:
    engine = Engine.load(files, variant="fp32", device="cpu", threads=1)
    np.testing.assert_allclose(engine.logits(["w1"])[0], expected_logits("w1"), atol=1e-5)
    with pytest.raises(InputError, match="no such variant"):
        Engine.load(files, variant="fp64")


@pytest.mark.parametrize(("kind", "labels"), [("classification", 3), ("multilabel", 3), ("regression", 0)])
def test_no_texts_give_no_rows(files: Path, kind: Kind, labels: int) -> None:
    task = TaskInfo(name="t", kind=kind, labels=("a", "b", "c")[:labels])
    if kind == "regression":
        assert activate(np.zeros((0, 1), np.float32), kind).shape == (0, 1)
    else:
        assert bare(files, task).predict([]).shape == (0, 3)


def test_sigmoid_for_multilabel_and_identity_for_regression() -> None:
    logits = np.array([[-800.0, 0.0, 3.0]], dtype=np.float32)
    np.testing.assert_allclose(activate(logits, "multilabel", 1.5), [[0.0, 0.5, 1 / (1 + np.exp(-2.0))]], atol=1e-7)
    np.testing.assert_array_equal(activate(logits, "regression", 1.5), logits)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_many_logits_are_activated_in_blocks_to_the_same_bits(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    whole = activate(logits, kind, 1.5)
    monkeypatch.setattr("kdc.serving.engine.engine._ACTIVATED_AT_ONCE", 20)
    np.testing.assert_array_equal(activate(logits, kind, 1.5), whole)
    np.testing.assert_array_equal(activate(logits[49:], kind, 1.5), whole[49:])


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(activate(np.array([[900.0, 900.0, -900.0]]), "classification"), [[0.5, 0.5, 0.0]])


def test_a_number_is_answered_in_the_unit_of_the_labels(files: Path) -> None:
    """The model answers in standard deviations from the mean."""
    make_graph(files / "number.onnx", outputs=1)
    task = TaskInfo(name="price", kind="regression", center=50.0, spread=10.0)
    engine = bare(files, task, model="number.onnx")
    deviations = np.stack([expected_logits(text)[:1] for text in TEXTS])
    np.testing.assert_allclose(engine.logits(TEXTS), deviations, atol=1e-5)
    np.testing.assert_allclose(engine.predict(TEXTS), 50 + 10 * deviations, rtol=1e-5)
    assert engine.predict(TEXTS).dtype == np.float32


def test_an_artifact_without_sets_of_labels_has_none_to_give(files: Path) -> None:
    probabilities = np.array([[0.5, 0.3, 0.2]])
    with pytest.raises(InputError, match="no sets of labels"):
        bare(files).label_sets(probabilities)
    task = SINGLE.model_copy(update={"sets": LabelSets(coverage=0.9, at_least=0.3)})
    assert bare(files, task).label_sets(probabilities) == [["bad", "so so"]]
    assert bare(files, task).decided(probabilities) == ["bad"]


@pytest.mark.parametrize(("most", "rows"), [(1, [1, 1, 1, 1]), (100, [8, 6, 3, 2]), (1024, [8, 8, 8, 8])])
def test_a_warm_up_runs_all_lengths_and_no_more_tokens_than_a_pass_will_have(
    files: Path, monkeypatch: pytest.MonkeyPatch, most: int, rows: list[int]
) -> None:
    """What is allocated for a pass stays allocated. Passes of one row use all threads."""
    engine = bare(files, info=INFO.model_copy(update={"max_length": 48}))
    alone, beside = list[Any](), list[Any]()
    monkeypatch.setattr(engine._passes, "run_with_all_threads", alone.append)
    monkeypatch.setattr(engine, "run_beside", beside.append)
    engine.warm_up(most)
    lengths = [8, 16, 32, 48]
    assert [[len(row) for row in batch] for batch in alone] == [*([length] for length in lengths), [3]]
    assert [[len(row) for row in batch] for batch in beside] == [
        [length] * count for length, count in zip(lengths, rows, strict=True)
    ]
    for batch in beside:
        assert {(*row.ids, *row.type_ids) for row in batch} == {(0,) * 2 * len(batch[0])}  # the unknown word, type 0


def test_rows_of_like_length_share_a_batch(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, lengths = bare(files), list[list[int]]()
    own = engine.run

    def run(encodings: Any) -> Any:
        lengths.append(list(map(len, encodings)))
        return own(encodings)

    monkeypatch.setattr(engine, "run", run)
    engine.logits(["w1", "w1 w2 w3", "w1 w2", "w3", "w1 w2 w3 w4"], batch_size=2)
    assert lengths == [[3, 3], [4, 5], [6]]


def test_long_texts_are_cut_to_the_manifests_length(files: Path) -> None:
    (encoding,) = bare(files).encode([" ".join(["w1"] * 50)])
    assert encoding.ids == [2] + [5] * 6 + [3]


def test_the_longer_text_of_a_pair_is_cut_first(files: Path) -> None:
    (encoding,) = bare(files, PAIR, TYPED, "typed.onnx").encode([("w1 w1 w1 w1 w1 w1", "w2")])
    assert encoding.ids == [2, 5, 5, 5, 5, 3, 6, 3]


def test_encodings_are_not_padded(files: Path) -> None:
    assert [len(encoding) for encoding in bare(files).encode(["w1", "w1 w2 w3"])] == [3, 5]


def test_padding_uses_the_manifests_id_on_its_side(files: Path) -> None:
    encodings = bare(files).encode(["w1", "w1 w2"])
    right = pad(encodings, INFO)
    np.testing.assert_array_equal(right["input_ids"], [[2, 5, 3, PAD_ID], [2, 5, 6, 3]])
    np.testing.assert_array_equal(right["attention_mask"], [[1, 1, 1, 0], [1, 1, 1, 1]])
    left = pad(encodings, INFO.model_copy(update={"pad_side": "left"}))
    np.testing.assert_array_equal(left["input_ids"], [[PAD_ID, 2, 5, 3], [2, 5, 6, 3]])
    np.testing.assert_array_equal(left["attention_mask"], [[0, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("rows", [[("w1", "w2")], [None], [3], [["w1", "w2"]], ["w1", b"w2"]])
def test_a_single_text_task_refuses_other_rows(files: Path, rows: Any) -> None:
    with pytest.raises(InputError, match="takes one text a row"):
        bare(files).predict(rows)


@pytest.mark.parametrize("rows", [["w1"], [("w1",)], [("w1", "w2", "w3")], [("w1", None)]])
def test_a_pair_task_refuses_other_rows(files: Path, rows: Any) -> None:
    with pytest.raises(InputError, match=r"takes two texts a row|not valid Unicode"):
        bare(files, PAIR).predict(rows)


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_a_text_without_anything_to_read_is_refused(files: Path, blank: str) -> None:
    """Would catch a label, and a high score, for a row of the kind that no training takes."""
    with pytest.raises(InputError, match=r"a text is empty(?s:.*)row 1"):
        bare(files).predict(["w1", blank])
    with pytest.raises(InputError, match=r"a text is empty(?s:.*)row 0"):
        bare(files, PAIR).predict([("w1", blank)])


def test_one_string_is_not_taken_for_a_list_of_letters(files: Path) -> None:
    with pytest.raises(InputError, match="one string"):
        bare(files).predict("w1 w2")


def test_a_lone_surrogate_is_wrong_input(files: Path) -> None:
    with pytest.raises(InputError, match="Unicode") as caught:
        bare(files).predict(["fine", "\ud800"])
    assert caught.value.given == "row 1"


def test_nan_is_an_error(files: Path, tmp_path: Path) -> None:
    make_graph(tmp_path / "nan.onnx", scale=float("nan"))
    engine = Engine.from_files(
        tmp_path / "nan.onnx", files / "tokenizer.json", task=SINGLE, tokenizer_info=INFO, threads=1
    )
    with pytest.raises(KdcError, match="NaN"):
        engine.predict(["w1"])


@pytest.mark.parametrize("way", ["mean", "twice"])
def test_logits_of_another_number_of_rows_are_an_error(files: Path, tmp_path: Path, way: str) -> None:
    """Would catch a graph that answers a batch with one row, which numpy gives to all of its rows."""
    model = onnx.load(files / "model.onnx")
    model.graph.node[-1].output[0] = "each"
    last = {
        "mean": onnx.helper.make_node("ReduceMean", ["each", "first"], ["logits"], keepdims=1),
        "twice": onnx.helper.make_node("Concat", ["each", "each"], ["logits"], axis=0),
    }
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(last[way])
    onnx.save(model, tmp_path / "model.onnx")
    engine = Engine.from_files(
        tmp_path / "model.onnx", files / "tokenizer.json", task=SINGLE, tokenizer_info=INFO, threads=1
    )
    with pytest.raises(KdcError, match="do not fit the rows"):
        engine.predict(["w1", "w2"])


def test_a_graph_for_another_tokenizer_or_task_is_refused(files: Path) -> None:
    with pytest.raises(KdcError, match="inputs do not fit the tokenizer"):
        bare(files, SINGLE, TYPED)
    with pytest.raises(KdcError, match="do not fit the task"):
        bare(files, TaskInfo(name="two", kind="classification", labels=("a", "b")))


@pytest.mark.parametrize("damaged", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_an_error_with_its_name(files: Path, tmp_path: Path, damaged: str) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        content = (files / name).read_bytes()
        (tmp_path / name).write_bytes(content[:40] if name == damaged else content)
    with pytest.raises(KdcError) as caught:
        bare(tmp_path)
    assert damaged in str(caught.value.given)


def test_a_graph_in_another_format_is_refused(files: Path, tmp_path: Path) -> None:
    """ONNX Runtime would take its own format too, whose content the checks of an artifact's graphs do not see."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(files / "model.onnx", options, providers=["CPUExecutionProvider"])
    with pytest.raises(KdcError, match="cannot load the model"):
        open_session(lambda _: tmp_path / "model.ort", device="cpu")


def test_a_missing_graph_is_an_error(files: Path) -> None:
    with pytest.raises(KdcError, match="missing"):
        bare(files, model="nothing.onnx")


def test_an_engine_does_not_keep_the_files_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [bytes(1000)]  # and one that nobody else has

    def recorded(*arguments: Any, **options: Any) -> bytes:
        contents.append(read_contents(*arguments, **options))
        return contents[-1]

    monkeypatch.setattr(engine_module, "read_contents", recorded)
    engine = Engine.load(write_artifact(tmp_path / "artifact"), device="cpu", threads=2, lanes=2)
    assert engine.lanes == 2
    assert len(contents) == 3  # the model, for both lanes, and the tokenizer
    assert len({sys.getrefcount(content) for content in contents}) == 1


def test_weights_in_another_file_are_not_read_even_where_nothing_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a session that looks for them in the working directory, as ONNX Runtime does for a model of bytes."""
    folder = write_artifact(tmp_path / "artifact")
    path = folder / "model.int8.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=200)
    monkeypatch.chdir(folder)
    feeds = {"input_ids": np.array([[4]]), "attention_mask": np.array([[1]])}
    assert onnxruntime.InferenceSession(path.read_bytes()).run(None, feeds)  # it would be answered
    with pytest.raises(KdcError, match="cannot load"):
        open_session(lambda _: path, device="cpu", threads=1)


class FallenBack(onnxruntime.InferenceSession):
    """What ONNX Runtime gives where CUDA is listed but cannot start: a CPU session, without an error."""

    def __init__(self, path: str, options: Any, providers: list[str], **more: Any) -> None:
        super().__init__(path, options, providers=["CPUExecutionProvider"], **more)


@pytest.fixture
def broken_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: None,
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=FallenBack,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)


@pytest.mark.parametrize(
    ("variant", "file", "is_loaded"),
    [
        ("int8", "model.int8.onnx", True),
        ("int8", "tokenizer.json", True),
        ("int8", "model.onnx", False),
        ("fp32", "model.onnx", True),
        ("fp32", "model.int8.onnx", False),
    ],
)
def test_what_is_loaded_is_compared_with_its_hash_and_nothing_else_is_read(
    variant: str, file: str, is_loaded: bool, tmp_path: Path
) -> None:
    """Would catch a graph or a tokenizer that opens though it was changed; and at each start of a worker a read of
    files that it has no use for."""
    folder = write_artifact(tmp_path / "artifact")
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    if is_loaded:
        with pytest.raises(KdcError, match="a file of the artifact was changed"):
            Engine.load(folder, variant=variant, device="cpu", threads=1)
    else:
        assert Engine.load(folder, variant=variant, device="cpu", threads=1).variant == variant


@pytest.mark.usefixtures("broken_cuda")
def test_cuda_by_name_does_not_fall_back(files: Path) -> None:
    with pytest.raises(KdcError, match="CUDA did not take effect") as caught:
        Engine.load(files, device="cuda")
    assert "fell back to CPUExecutionProvider" in str(caught.value.given)


@pytest.mark.usefixtures("broken_cuda")
def test_auto_falls_back_to_the_cpus_variant_with_a_note(files: Path) -> None:
    engine = Engine.load(files, device="auto", threads=1)
    assert (engine.provider, engine.variant) == ("CPUExecutionProvider", "int8")
    assert "fell back" in engine.notes[0]


def test_auto_without_a_cuda_provider_says_so(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDAExecutionProvider" in Engine.load(files, device="auto", threads=1).notes[0]
    with pytest.raises(KdcError, match="CUDA did not take effect"):
        Engine.load(files, device="cuda")


def test_the_libraries_are_preloaded_before_the_first_session(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    switched_off: list[Any] = []

    class Recorded(FallenBack):
        def __init__(self, path: str, options: Any, providers: list[str], **more: Any) -> None:
            order.append(providers[0])
            switched_off.append(more["disabled_optimizers"])
            super().__init__(path, options, providers, **more)

    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: order.append("preload"),
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=Recorded,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    open_session(lambda _: files / "model.onnx", device="auto", threads=1)
    assert order == ["preload", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert switched_off == [None, ["SkipLayerNormFusion"]]  # the fused node is slow on CPUs alone


def test_tensorrt_by_name_does_not_fall_back(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(KdcError, match="TensorRT did not take effect") as caught:
        Engine.load(files, device="tensorrt")
    assert "pip install tensorrt" in caught.value.remedy


def test_io_binding_gives_the_same_logits(files: Path) -> None:
    engine = bare(files)
    feeds = pad(engine.encode(TEXTS), INFO)
    opened = onnxruntime.InferenceSession(str(files / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(run_bound(opened, feeds), engine.run(engine.encode(TEXTS)))


@pytest.mark.gpu
def test_cuda_gives_the_cpus_answer(files: Path) -> None:
    try:
        engine = Engine.load(files, device="cuda", variant="fp32")
    except KdcError as error:
        pytest.skip(f"no CUDA device: {error.given}")
    assert engine.provider == "CUDAExecutionProvider"
    np.testing.assert_allclose(engine.predict(TEXTS), Engine.load(files, device="cpu", variant="fp32").predict(TEXTS))


def test_an_unknown_device_is_wrong_input(files: Path) -> None:
    with pytest.raises(InputError, match="no such device"):
        Engine.load(files, device="tpu")  # type: ignore[arg-type]


def write_tree(root: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("contents", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        # A group above is tighter than the process's own.
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # Inside a container, version 1 names the host's path but mounts its own at the root.
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_threads_follow_the_cgroups_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(write_tree(tmp_path, contents)) == cores


def test_threads_follow_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4}, raising=False)
    assert usable_cores(tmp_path) == 1
    assert Engine.load(files, device="cpu").threads == 1


@pytest.fixture(scope="module")
def imported(files: Path) -> set[str]:
    """Modules of a fresh process that loaded an artifact and predicted."""
    code = (
        "import sys; from kdc.serving.engine.engine import Engine; "
        f"engine = Engine.load({str(files)!r}, device='cpu', threads=1); engine.predict(['w1']); "
        "print(*sys.modules)"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_a_fresh_process_predicts_without_torch_and_transformers(imported: set[str]) -> None:
    assert "onnxruntime" in imported
    assert not {"torch", "transformers", "onnx", "kdc.pipeline"} & imported


def test_the_process_that_starts_workers_loads_no_onnx_runtime() -> None:
    # It imports the service as its workers do, and would pay its time and memory for nothing.
    code = "import sys; import kdc.serving.service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kdc.serving.engine.engine" in done.stdout.split()
    assert "onnxruntime" not in done.stdout.split()


def test_the_engine_imports_nothing_of_the_web(imported: set[str]) -> None:
    web = {"bentoml", "starlette", "uvicorn", "httpx2", "requests", "aiohttp", "fsspec", "huggingface_hub"}
    assert not web & imported
    assert not [name for name in imported if name.startswith(("kdc.serving.http", "kdc.serving.service"))]


def test_a_closed_engine_says_so(files: Path) -> None:
    with Engine.load(files, device="cpu", threads=1) as engine:
        assert engine.predict(["w1"]).shape == (1, 3)
    with pytest.raises(KdcError, match="closed"):
        engine.predict(["w1"])

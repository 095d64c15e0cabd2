"""Long texts in windows: what stands in each, and one answer made of theirs, wherever it is asked."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from bag_models import INFO, PAIR, SINGLE, expected_logits, make_graph, write_artifact
from live import running
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import BertWordPieceTokenizer
from typer.testing import CliRunner

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import Join, Kind, LongTexts, Manifest, Second, TokenizerInfo, Variant
from kdc.cli import app
from kdc.common.errors import InputError
from kdc.pipeline.quality.latency import rows_of
from kdc.pipeline.training import joining
from kdc.pipeline.training.joining import best_join
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import Windows, joined, row_tokens, windows_of
from kdc.serving.engine.tokenizing import RowTokenizer
from kdc.serving.http.registry import Registry
from kdc.serving.http.settings import ServeSettings

WAYS: tuple[Join, ...] = ("mean", "max", "first", "noisy-or")
CUT = INFO.model_copy(update={"max_length": 16})
WORDS = [f"w{number % 20}" for number in range(60)]


def in_windows(stride: int = 10, windows: int = 4, keep: int = 0, join: Sequence[Join] = ("mean",)) -> TokenizerInfo:
    """Of 16 tokens, two of them special."""
    return CUT.model_copy(update={"long": LongTexts(stride=stride, windows=windows, keep=keep, join=tuple(join))})


def probabilities(logits: NDArray[np.floating], kind: Kind) -> NDArray[np.floating]:
    if kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    return np.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize(("count", "stride", "most"), list(itertools.product((17, 24, 25, 60), (5, 9, 14), (2, 9))))
def test_windows_hold_every_word_in_order_and_no_more_tokens_than_they_may(
    count: int, stride: int, most: int, keep: int
) -> None:
    """The words are numbers, so that what a window holds tells where it stood. Would catch a gap, a window that is too
    long, special tokens in the first window alone, a last window with one word, and a cut that is not told."""
    words = list(range(100, 100 + count - 2))
    row = [1, *words, 2], [0] * count, [None, *[0] * len(words), None]
    long = LongTexts(stride=stride, windows=most, keep=keep)
    for from_left in (False, True):
        found = windows_of(*row, max_length=16, long=long, from_left=from_left)
        bodies = [part.ids[1:-1] for part in found.parts]
        assert all(part.ids[0] == 1 and part.ids[-1] == 2 for part in found.parts)
        assert all(body[:keep] == words[:keep] for body in bodies)
        slid = [body[keep:] for body in bodies]
        assert all(len(body) == 14 - keep and body == list(range(body[0], body[-1] + 1)) for body in slid)
        starts = [body[0] for body in slid]
        assert all(0 < step <= stride for step in np.diff(starts))
        assert found.row_tokens == count
        whole = {*words[:keep], *itertools.chain(*slid)} == set(words)
        assert len(bodies) <= most
        assert found.overflowing is not whole
        assert (slid[-1][-1] == words[-1]) if whole or from_left else (slid[0][0] == words[keep])


@pytest.mark.parametrize("from_left", [False, True])
@pytest.mark.parametrize("length", [3, 6, 7, 9])
def test_the_shorter_text_of_a_pair_is_in_every_window_and_takes_half_of_it_at_most(
    length: int, from_left: bool
) -> None:
    """16 tokens, three of them special: a text of more than six tokens is cut at the side that was asked for."""
    shorter, longer = list(range(100, 100 + length)), list(range(200, 240))
    ids = [1, *shorter, 2, *longer, 2]
    owners = [None, *[0] * length, None, *[1] * 40, None]
    row = windows_of(
        ids, [0] * len(ids), owners, max_length=16, long=LongTexts(stride=4, windows=20), from_left=from_left
    )
    kept = shorter[-6:] if from_left else shorter[:6]
    assert {tuple(each for each in part.ids if 100 <= each < 200) for part in row.parts} == {tuple(kept)}
    assert row.overflowing is (length > 6)


DENSE = {
    "no spaces": "abcde" * 60,
    "Chinese": "".join(chr(0x4E00 + place % 40) for place in range(300)),
    "Japanese with letters": "\u6620\u753b\u304cabc\u3001\u3068\u3066\u3082" * 30,
    "accents and signs": "e\u0301a\u0308!?--" * 40,
}


@pytest.mark.parametrize("text", DENSE.values(), ids=DENSE.keys())
def test_dense_text_is_divided_between_its_tokens(text: str, tmp_path: Path) -> None:
    """Text without a space to divide it at. The tokenizers library, which is asked for no windows, is the oracle. Would
    catch words, or characters, that are taken for tokens, and a token that no window has."""
    letters = [chr(place) for place in range(97, 123)]
    others = [chr(0x4E00 + place) for place in range(40)] + list("\u6620\u753b\u304b\u3001\u3068\u3066\u3082!?-")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *others, *(f"##{each}" for each in (*letters, *others))]
    library = BertWordPieceTokenizer({piece: place for place, piece in enumerate(pieces)}, lowercase=True)
    library._tokenizer.model.max_input_chars_per_word = 1000
    library.save(str(tmp_path / "tokenizer.json"))
    (row,) = RowTokenizer.read(tmp_path / "tokenizer.json", in_windows(stride=9, windows=64)).encode([text])
    assert isinstance(row, Windows)
    whole, found = library.encode(text).ids, list[int]()
    assert pieces.index("[UNK]") not in whole
    for place, part in enumerate(row.parts):
        assert len(part) == 16
        assert (part.ids[0], part.ids[-1]) == (whole[0], whole[-1])
        body = part.ids[1:-1]
        # Nine tokens after the one before, and the last one where the text ends.
        start = min(9 * place, len(whole) - 2 - 14)
        assert body == whole[1 + start : 15 + start]
        found += body[len(found) - start :]
    assert found == whole[1:-1]
    assert not row.overflowing


def test_of_a_pair_the_longer_text_slides_and_the_shorter_one_stands_in_each() -> None:
    first, second = list(range(100, 130)), list(range(200, 204))
    ids, owners = [1, *first, 2, *second, 2], [None, *[0] * 30, None, *[1] * 4, None]
    types = [0] * 32 + [1] * 5
    found = windows_of(ids, types, owners, max_length=16, long=LongTexts(stride=6, windows=9))
    assert {*itertools.chain(*(part.ids for part in found.parts))} == set(ids)
    for part in found.parts:
        assert [token for token in part.ids if token >= 200] == second
        assert [kind for token, kind in zip(part.ids, part.type_ids, strict=True) if token >= 200] == [1] * 4
        assert len(part) == 16
    # A second text that is long too is cut to half of the room.
    ids, owners = [1, *first, 2, *range(200, 220), 2], [None, *[0] * 30, None, *[1] * 20, None]
    found = windows_of(ids, [0] * 53, owners, max_length=16, long=LongTexts(stride=6, windows=9))
    assert {len([token for token in part.ids if token >= 200]) for part in found.parts} == {6}
    assert found.overflowing  # so that a client that forbids cutting is told


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_answers_are_joined_by_the_formulas_of_probabilities(kind: Kind) -> None:
    """The oracle works with probabilities. Would catch a constant of one window that moves the answer of all."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=3, size=(9, 3)).astype(np.float32)
    counts = [1, 5, 1, 2]
    parts = np.split(logits, np.cumsum(counts)[:-1])
    for way in WAYS:
        answers = joined(logits, counts, (way,), kind)
        shifted = joined(logits + random.normal(size=(9, 1)).astype(np.float32), counts, (way,), kind)
        for part, answer, other in zip(parts, answers, shifted, strict=True):
            chances = probabilities(part.astype(np.float64), kind)
            if len(part) == 1:
                assert (answer == part[0]).all()  # bit by bit
                continue
            if kind == "classification":
                np.testing.assert_allclose(probabilities(answer, kind), probabilities(other, kind), atol=1e-5)
            if way == "noisy-or":
                expected = 1 - np.prod(1 - chances, axis=0)
            elif way == "mean":
                odds = np.log(chances) - (np.log(1 - chances) if kind == "multilabel" else 0)
                expected = np.exp(odds.mean(0)) / (1 + np.exp(odds.mean(0)) if kind == "multilabel" else 1)
            else:
                expected = chances[0] if way == "first" else chances.max(0)
            of_each = kind == "multilabel" or way == "noisy-or"
            found = probabilities(answer, "multilabel") if of_each else np.exp(answer)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_training_joins_as_serving_does_and_its_gradients_are_numbers(kind: Kind) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(scale=4, size=(9, 1 if kind == "regression" else 3)).astype(np.float32)
    logits[3], logits[4] = 40, -40  # nearly certain, where a logarithm of what is left would be infinite
    logits[5:7] = np.array([[16.0, 0.0, 1.0]])[:, : logits.shape[1]]  # two labels that are nearly nowhere
    counts = torch.tensor([2, 1, 6])
    problems = {"classification": "single_label_classification", "multilabel": "multi_label_classification"}
    for way in WAYS[:3] if kind == "regression" else WAYS:
        tensor = torch.from_numpy(logits).requires_grad_()
        config = type("Config", (), {"kdc_join": [way], "problem_type": problems.get(kind, kind)})
        found = joining.joined(tensor, counts, config)
        found.sum().backward()
        np.testing.assert_allclose(found.detach(), joined(logits, [2, 1, 6], (way,), kind), rtol=1e-3, atol=1e-3)
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_each_label_is_joined_by_the_way_that_fits_it() -> None:
    """The first label is there where any window has it, the second where most windows have it. Would catch one way for
    all, and losses that are compared across labels."""
    random = np.random.default_rng(2)
    counts = [5] * 200
    windows = random.random((200, 5, 2)) < [0.2, 0.5]
    labels = np.stack([windows[..., 0].any(1), windows[..., 1].mean(1) > 0.5], axis=1).astype(np.float32)
    logits = np.where(windows, 4, -4).reshape(-1, 2).astype(np.float32)
    first, second = best_join(logits, counts, labels, "multilabel")
    assert first in ("max", "noisy-or")
    assert second == "mean"


def test_labels_may_be_joined_each_by_its_own_way() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], dtype=np.float32)
    np.testing.assert_allclose(joined(logits, [2], ("max", "mean", "first"), "multilabel"), [[3, 1, 3]])


def test_more_windows_than_a_pass_takes_are_answered_in_turns() -> None:
    """With gradients all windows are in one pass. Would catch windows that are left out at the end of a turn."""

    class Sums(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(100.0))
            self.passes: list[int] = []

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            self.passes.append(len(input_ids))
            return SimpleNamespace(logits=(self.weight[input_ids] * attention_mask).sum(1, keepdim=True))

    model, ids = Sums(), torch.randint(100, (130, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(3)}
    whole = joining.parts_of(model, batch).detach()
    with torch.inference_mode():
        assert torch.equal(joining.parts_of(model, batch), whole)
    assert model.passes == [130, 64, 64, 2]


def test_a_model_of_rows_that_are_cut_says_nothing_of_windows() -> None:
    """Would catch a fine-tuned checkpoint's way in the config of a model that never saw a window."""
    model = SimpleNamespace(config=SimpleNamespace(kdc_join=["max"]))
    joining.set_join(model, None)
    joining.set_join(model, None)
    assert joining.join_of(model.config) == ("mean",)
    assert not hasattr(model.config, "kdc_join")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("long") / "mood", info=in_windows(join=("max",)))


def by_hand(text: str, *, scale: float = 1.01, temperature: float = 2) -> NDArray[np.floating]:
    """Probabilities of a text whose windows are 14 words, 10 words apart, the last at the end, by their maximum."""
    words = text.split()
    starts = [*range(0, max(0, len(words) - 14), 10), max(0, len(words) - 14)]
    parts = np.stack([expected_logits(" ".join(words[start : start + 14]), scale=scale) for start in starts])
    logits = parts[0] if len(parts) == 1 else np.log(probabilities(parts.astype(np.float64), "classification")).max(0)
    return probabilities(logits / temperature, "classification")


TEXTS = [" ".join(WORDS[start : start + count]) for start, count in ((3, 5), (0, 14), (1, 15), (5, 30), (9, 44))]


def test_the_engine_answers_as_the_windows_by_hand_say(artifact: Path) -> None:
    with Engine.load(artifact) as engine:
        for batch_size in (1, 2, 32):
            found = engine.predict(TEXTS, batch_size=batch_size)
            np.testing.assert_allclose(found, np.stack([by_hand(text) for text in TEXTS]), atol=1e-5)
        rows = engine.encode(TEXTS)
        assert [len(row) for row in rows] == [7, 16, 32, 48, 64]
        np.testing.assert_allclose(engine.activated(engine.run(rows)), engine.predict(TEXTS), atol=1e-6)


def test_short_texts_answer_bit_by_bit_as_where_long_ones_are_cut(artifact: Path, tmp_path: Path) -> None:
    with Engine.load(artifact) as engine, Engine.load(write_artifact(tmp_path / "cut", info=CUT)) as cutting:
        assert (engine.logits(TEXTS[:2]) == cutting.logits(TEXTS[:2])).all()
        assert not np.allclose(engine.logits(TEXTS[2:]), cutting.logits(TEXTS[2:]))


@pytest.mark.parametrize("place", [0, 7, 20, 35, 43])
def test_a_needle_is_found_wherever_it_stands_and_padding_does_not_hide_it(artifact: Path, place: int) -> None:
    """Would catch windows of which one is left out, and a shorter neighbour's padding that is read."""
    filler = ["w3"] * 43
    text = " ".join([*filler[:place], "w11", *filler[place:]])
    with Engine.load(artifact) as engine:
        alone = engine.logits([text])
        assert np.abs(alone - engine.logits([" ".join(["w3"] * 44)])).max() > 1
        np.testing.assert_allclose(engine.logits(["w1", text, "w2 w4"])[1], alone[0], atol=1e-5)


def test_a_service_answers_long_texts_and_counts_their_windows(artifact: Path) -> None:
    with running(artifact) as url, httpx2.Client(base_url=url) as client:
        found = client.post("/predict", json={"inputs": [[text] for text in TEXTS]}).json()
        info = client.get("/info").json()
        cut = client.post("/predict", json={"inputs": " ".join(WORDS), "truncate": False})
        metrics = client.get("/metrics").text
    labels = SINGLE.labels
    scores = [[{each["label"]: each["score"] for each in row}[label] for label in labels] for row in found]
    np.testing.assert_allclose(scores, np.stack([by_hand(text) for text in TEXTS]), atol=1e-4)
    assert info["max_input_length"] == 16 + 3 * 10
    assert info["windows"] == {"stride": 10, "windows": 4, "keep": 0, "join": ["max"]}
    assert (cut.status_code, "more than 46 tokens" in cut.text) == (422, True)
    line = next(line for line in metrics.splitlines() if line.startswith("kdc_batch_rows_sum"))
    assert float(line.split()[-1]) == 1 + 1 + 2 + 3 + 4  # windows
    line = next(line for line in metrics.splitlines() if line.startswith("kdc_rows_total"))
    assert float(line.split()[-1]) == len(TEXTS)


def test_a_queue_that_is_too_short_for_one_text_is_refused_at_the_start(artifact: Path) -> None:
    """Would catch an artifact whose longest texts are refused for ever, by a message on too many texts."""
    registry = Registry(ServeSettings(artifact=str(artifact), device="cpu", threads=1, max_queue_tokens=63))
    with pytest.raises(InputError, match="KDC_MAX_QUEUE_TOKENS=64 or more"):
        registry.load()


def test_rows_that_are_made_up_to_be_timed_have_the_length_of_those_that_were_judged(artifact: Path) -> None:
    """Would catch `kdc verify` timing one window where the contract timed several."""
    with Engine.load(artifact) as engine:
        lengths = [row_tokens(row) for row in engine.encode(TEXTS)]
        assert lengths == [7, 16, 17, 32, 46]
        assert [row_tokens(row) for row in engine.encode(rows_of(lengths, engine))] == lengths


def test_kdc_predict_answers_long_texts(artifact: Path, tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["sentence"], *([text] for text in TEXTS)])
    out = tmp_path / "out.csv"
    arguments = ["predict", str(artifact), str(tmp_path / "rows.csv"), str(out), "--all-scores"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with out.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    scores = [[float(row[f"score_{label}"]) for label in SINGLE.labels] for row in rows]
    np.testing.assert_allclose(scores, np.stack([by_hand(text) for text in TEXTS]), atol=1e-4)


def test_both_models_of_a_cascade_answer_by_windows(tmp_path: Path) -> None:
    """All rows go on. Would catch the second model's answers to windows, taken for those to rows."""
    folder = write_artifact(tmp_path / "mood", info=in_windows(join=("max",)), temperature=1)
    make_graph(folder / "second.onnx", -0.7)
    second = Second(name="other", file="second.onnx", token_type_ids=False, temperature=1, answered_from=1, share=1)
    manifest = load_manifest(folder)
    cascade = {"cascade": Variant(file="model.onnx", second=second, size_bytes=1, opset=17, ir=8)}
    changes: dict[str, Any] = {
        "variants": {**manifest.variants, **cascade},
        "files": manifest.files | describe_files(folder, ["second.onnx"]),
        "providers": {**manifest.providers, "CPUExecutionProvider": "cascade"},
    }
    write_manifest(folder, manifest.model_copy(update=changes))
    expected = np.stack([by_hand(text, scale=-0.7, temperature=1) for text in TEXTS])
    with Engine.load(folder) as engine:
        np.testing.assert_allclose(engine.predict(TEXTS), expected, atol=1e-5)
    with running(folder) as url:
        found = httpx2.post(f"{url}/predict", json={"inputs": [[text] for text in TEXTS]}).json()
    labels = SINGLE.labels
    scores = [[{each["label"]: each["score"] for each in row}[label] for label in labels] for row in found]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_pairs_are_answered_too(tmp_path: Path) -> None:
    """The second text, which is the longer one here, slides."""
    with Engine.load(write_artifact(tmp_path / "pairs", PAIR, in_windows(join=("first",)))) as engine:
        first = engine.logits([("w1 w2", " ".join(WORDS[:11]))])
        np.testing.assert_allclose(engine.logits([("w1 w2", " ".join(WORDS[:40]))]), _log_softmax(first), atol=1e-5)


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.log(probabilities(logits.astype(np.float64), "classification")))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"join": ["max", "mean", "mean"]}, "cannot be joined"),
        ({"join": ["median"]}, "Input should be"),
        ({"windows": 65}, "less than or equal to 64"),
        ({"windows": 1}, "greater than or equal to 2"),
    ],
)
def test_a_manifest_with_windows_that_cannot_be_is_refused(
    artifact: Path, changes: dict[str, Any], problem: str
) -> None:
    """A task of one class for each row has one way for all its labels."""
    manifest = load_manifest(artifact).model_dump(mode="json")
    manifest["tokenizer"]["long"] |= changes
    with pytest.raises(ValidationError, match=problem):
        Manifest.model_validate(manifest)

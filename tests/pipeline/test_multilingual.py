"""The families for many languages: tiny models of their shapes, with real SentencePiece tokenizers."""

import json
from pathlib import Path
from typing import Any

import multilingual_models
import pytest
import tiny_runs
import torch
import transformers
from tokenizers import Tokenizer

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.config.resolve import layer_of, parse_sets, resolve
from kdc.pipeline.config.settings import Config
from kdc.pipeline.models import loading
from kdc.pipeline.models.vocabulary import covered_scripts, cut_vectors, read_kept, save_smaller
from kdc.pipeline.results.data import VocabularyResult
from kdc.pipeline.run import compress
from kdc.pipeline.rundir.record import read_result
from kdc.serving.engine.engine import Engine

FAMILIES = ("e5", "multilingual-minilm", "mmbert")
TEXTS = ["schlecht das", "良い 日本語", "gut, sehr gut!", "悪い w1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("multilingual")
    return {family: multilingual_models.build(family, folder / family) for family in FAMILIES}


def config_for(folder: Path, family: str, teacher: Path, *sets: str, **flags: Any) -> Config:
    given = {
        "run.family": family,
        "run.out": folder / "run",
        "teacher.model": str(teacher),
        "data.train": folder / "train.csv",
        "data.eval": folder / "eval.csv",
        "data.text": "text",
    }
    return resolve(flags=layer_of(given | flags), sets=parse_sets([*tiny_runs.QUICK, *sets]), file={})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_the_checkpoints_file(family: str, models: dict[str, Path]) -> None:
    """transformers 5 makes BERT's words of multilingual MiniLM's pieces. Would catch them, as unknown words."""
    file = Tokenizer.from_file(str(models[family] / "tokenizer.json"))
    tokenizer = loading.load_tokenizer(str(models[family]))
    for text in (*TEXTS, "größter Straße 🚀 ﾃｽﾄ"):
        assert tokenizer(text)["input_ids"] == file.encode(text).ids
    assert tokenizer.unk_token_id not in tokenizer("schlecht größter 良い")["input_ids"]
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", file.token_to_id("<pad>"))


@pytest.mark.parametrize("family", ["e5", "mmbert"])
def test_a_prefix_gives_the_tokens_of_prefix_and_text(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Saved, opened by transformers, and asked for again. Would catch a prefix twice, and one that a class forgets."""
    file = Tokenizer.from_file(str(models[family] / "tokenizer.json"))
    loading.load_tokenizer(str(models[family]), "query: ").save_pretrained(tmp_path)
    loading.load_config(str(models[family])).save_pretrained(tmp_path)
    for tokenizer in (
        loading.load_tokenizer(str(tmp_path), "query: "),
        loading.load_tokenizer(str(tmp_path)),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    ):
        for text in TEXTS:
            assert tokenizer(text)["input_ids"] == file.encode(f"query: {text}").ids
            pair = file.encode(f"query: {text}", f"query: {TEXTS[0]}")
            assert tokenizer(text, TEXTS[0])["input_ids"] == pair.ids
        cut = tokenizer("gut " * 50, truncation=True, max_length=12)["input_ids"]
        assert len(cut) == 12
        assert cut[:3] == file.encode("query: gut").ids[:3]


def test_a_prefix_that_would_be_other_tokens_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """A tokenizer that takes "query: word" for one word."""
    whole = json.loads((models["e5"] / "tokenizer.json").read_text(encoding="utf-8"))
    whole["pre_tokenizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}), encoding="utf-8"
    )
    loading.load_config(str(models["e5"])).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="together they would be other tokens"):
        loading.load_tokenizer(str(tmp_path), "query: ")


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_kept_pieces_are_answered_as_before_the_cut(
    family: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Would catch vectors of other pieces, and a prefix under its old ids."""
    source, prefix = str(models[family]), "query: " if family == "e5" else ""
    whole = loading.load_tokenizer(source, prefix)
    used = {piece for text in TEXTS for piece in whole(text)["input_ids"]}
    count = save_smaller(source, used, 0, tmp_path, prefix)
    model = transformers.AutoModel.from_pretrained(source).eval()
    smaller = loading.load_tokenizer(str(tmp_path))
    with torch.inference_mode():
        before = [model(**whole(text, return_tensors="pt")).last_hidden_state for text in TEXTS]
        cut_vectors(model, tmp_path)
        after = [model(**smaller(text, return_tensors="pt")).last_hidden_state for text in TEXTS]
    assert count < 0.7 * len(whole)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old)
    rows = [" ".join(multilingual_models.words(script)[:8]) for script in multilingual_models.LETTERS]
    assert not any(whole.unk_token_id in whole(text)["input_ids"] for text in rows)
    assert not any(smaller.unk_token_id in smaller(text)["input_ids"] for text in rows)


def test_scripts_that_lose_their_pieces_are_named(models: dict[str, Path]) -> None:
    """The oracle counts letters of the alphabets that the tokenizer was trained on."""
    whole = Tokenizer.from_file(str(models["e5"] / "tokenizer.json"))
    used = {piece for text in ["schlecht das gut", "das große Paket"] for piece in whole.encode(text).ids}
    letters = multilingual_models.LETTERS["Cyrillic"]
    cyrillic = [piece for piece in whole.get_vocab() if set(piece) & set(letters)]
    kept = used | {whole.get_vocab()[letter] for letter in letters}
    covered, lost = covered_scripts(whole, kept, used)
    assert covered == "100% Latin"
    assert f"Cyrillic ({len(letters)} of {len(cyrillic)} pieces)" in lost
    assert "Arabic" in lost
    assert "Latin" not in lost
    every = range(whole.get_vocab_size())
    assert covered_scripts(whole, every, used) == ("100% Latin", "")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_a_family_goes_from_rows_to_an_artifact(
    family: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs. Would catch a prefix, pooling, adapters or vocabulary that a stage leaves out."""
    multilingual_models.write_rows(tmp_path / "train.csv", 600, seed=1)
    multilingual_models.write_rows(tmp_path / "eval.csv", 80, seed=2)
    said, reporter = list[str](), Reporter(quiet=True)
    monkeypatch.setattr(reporter, "say", said.append)
    config = config_for(tmp_path, family, models[family], "baselines.enabled=true", "export.teacher=true")
    result = compress(config, reporter=reporter)
    table: dict[str, Any] = dict(result.metrics)
    assert table["teacher"]["accuracy"] > 85
    assert table["fp32"]["accuracy"] > 85
    assert table["int8"]["accuracy"] > 80
    assert result.artifact is not None
    manifest = load_manifest(result.artifact)
    kept = read_kept(tmp_path / "run" / "vocabulary" / "pieces")
    assert f"with {len(kept)} pieces of its vocabulary" in manifest.lineage.student
    note = read_result(tmp_path / "run", VocabularyResult).note
    assert "Cyrillic (" in note
    assert f"warning: {note}" in said
    assert result.result is not None
    assert note in result.result.notes
    whole = Tokenizer.from_file(str(models[family] / "tokenizer.json"))
    prefix = "query: " if family == "e5" else ""
    of_teacher = loading.load_tokenizer(str(tmp_path / "run" / "teacher" / "model"))
    assert of_teacher("gut das")["input_ids"] == whole.encode(f"{prefix}gut das").ids
    with Engine.load(result.artifact, variant="fp32", device="cpu") as engine:
        assert kept[engine.encode(["gut das"])[0].ids].tolist() == whole.encode(f"{prefix}gut das").ids
        answers = engine.predict(["das gut", "良い", "schlecht", "悪い"]).argmax(1)
        assert [engine.labels[answer] for answer in answers] == ["good", "good", "bad", "bad"]


def test_a_checkpoint_as_student_keeps_its_own_vocabulary(models: dict[str, Path], tmp_path: Path) -> None:
    """The families' cut is for students made of the teacher."""
    own = {"student.model": str(models["e5"])}
    assert config_for(tmp_path, "e5", models["e5"]).student.vocabulary == "auto"
    assert config_for(tmp_path, "e5", models["e5"], **own).student.has_all_pieces
    assert config_for(tmp_path, "e5", models["e5"], **{"student.model": "conv"}).student.vocabulary == "auto"


def test_a_revision_is_fetched_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without weights in safetensors, torch's file too. Would catch the newest one in place of the pinned."""
    asked: list[tuple[str, str, bool]] = []

    def fetch(name: str, *, revision: str, allow_patterns: Any) -> str:
        asked.append((name, revision, "*.json" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    assert loading.locate("owner/name@abc") == str(tmp_path)
    assert asked == [("owner/name", "abc", True), ("owner/name", "abc", False)]
    (tmp_path / "model.safetensors").touch()
    assert loading.locate("owner/name@def") == loading.locate("owner/name@def") == str(tmp_path)
    assert asked[2:] == [("owner/name", "def", True)]
    assert loading.locate("owner/name") == "owner/name"


def test_an_absent_revision_is_an_error_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(KdcError, match="cannot load"):
        loading.load_config("nobody/nothing@0123456789012345678901234567890123456789")

"""A student with a smaller vocabulary in a whole run: other tokens than its teacher's, the same rows and answers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import transformers
from conftest import Finished
from safetensors.numpy import load_file
from tiny_runs import PIECES, SINGLE, pieces_model
from tokenizers import Tokenizer

from kdc.artifact.contract.terms import Costs
from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError, OutOfReach
from kdc.pipeline.config.settings import Config
from kdc.pipeline.models.vocabulary import read_kept
from kdc.pipeline.results.data import VocabularyResult
from kdc.pipeline.results.training import CandidatesResult, SearchResult, StudentResult
from kdc.pipeline.rundir.record import CompressResult, read_result
from kdc.serving.engine.engine import Engine


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT of the other runs, with pieces in place of words."""
    return pieces_model(tmp_path_factory.mktemp("pieces") / "teacher")


@pytest.mark.parametrize("student", ["layers:0", "static:width=12,hidden=16", "teacher"])
@pytest.mark.slow
def test_its_artifact_has_the_pieces_that_the_texts_use(
    student: str, teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    """The oracle looks at the texts. Would catch tokens, vectors, tokenizer or int8 of the other vocabulary."""
    run = tmp_path / "run"
    flags: dict[str, Any] = {
        "run.out": run,
        "student.model": student,
        "student.vocabulary": "auto",
        "export.teacher": True,
    }
    flags["run.controls"] = student == "layers:0"
    result = tiny_runs.compress(tiny_runs.config_for(finished.folder, teacher, flags=flags))
    kept = [PIECES[old] for old in read_kept(run / "vocabulary" / "pieces")]
    assert set(PIECES[:SINGLE]) <= set(kept)
    assert not [piece for piece in kept if len(piece) > 5]  # the texts use none of "never..."
    whole = load_file(run / "teacher" / "model" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert whole.shape[0] == len(PIECES)
    weights = load_file(run / "merge" / "model" / "model.safetensors")
    (vectors,) = (
        value for name, value in weights.items() if name.endswith(("word_embeddings.weight", "vectors.weight"))
    )
    assert vectors.shape[0] == len(kept) + ("vectors.weight" in weights)  # a row for padding
    table: dict[str, Any] = dict(result.metrics)
    assert table["teacher"]["accuracy"] > 90
    assert table["fp32"]["accuracy"] > 90
    assert table["int8"]["accuracy"] > 85
    assert table["teacher_fp32"]["parameters"] > table["fp32"]["parameters"]
    assert result.artifact is not None
    assert f"with {len(kept)} pieces of its vocabulary" in load_manifest(result.artifact).lineage.student
    with Engine.load(result.artifact, variant="fp32", device="cpu") as engine:
        answers = engine.predict([("w1 w9", "w4"), ("w2 never3", "w4")]).argmax(1)
        assert answers.tolist() == [engine.labels.index(name) for name in ("yes", "no")]


@pytest.mark.slow
def test_the_teacher_is_not_asked_again_for_another_vocabulary(
    teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    flags = {"run.out": tmp_path / "run", "student.model": "layers:0"}
    tiny_runs.compress(tiny_runs.config_for(finished.folder, teacher, flags=flags), until="student")
    again = tiny_runs.config_for(finished.folder, teacher, flags=flags | {"student.vocabulary": 140})
    result = tiny_runs.compress(again, until="student")
    assert result.stages["teacher"].skipped
    assert result.stages["targets"].skipped
    assert not result.stages["student"].skipped
    assert len(read_kept(tmp_path / "run" / "vocabulary" / "pieces")) == 140
    tokens = np.load(tmp_path / "run" / "vocabulary" / "pieces" / "kept.npy")
    assert tokens.tolist() == sorted(tokens.tolist())


@pytest.mark.slow
def test_the_teacher_itself_has_fewer_pieces_where_the_size_asks_for_it(
    teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    """Would catch tokens of the whole vocabulary for the one that is cut, alone and in a search."""
    for search in ("off", "quick"):
        flags = {"run.out": tmp_path / search, "student.model": "teacher", "contract.search": search}
        sets = ["quantize.vector_bits=8", "quantize.enabled=false"]

        def config(most: float, flags: dict[str, Any] = flags, sets: list[str] = sets) -> Config:
            given = flags | {"contract.max_size_mb": most}
            return tiny_runs.config_for(finished.folder, teacher, *sets, flags=given)

        tiny_runs.compress(config(100.0), until="candidates")
        uncut = read_result(tmp_path / search, CandidatesResult).candidates["teacher"]
        assert uncut.fewer_pieces is not None
        whole, fewer = (each.variants["fp32"] for each in (uncut, uncut.fewer_pieces))
        assert isinstance(whole, Costs)
        assert isinstance(fewer, Costs)
        until = "export" if search == "off" else "search"
        result = tiny_runs.compress(config((whole.size_mb + fewer.size_mb) / 2), until=until)
        if search == "off":
            assert "merge" in result.stages
            assert read_result(tmp_path / search, StudentResult).tune["accuracy"] > 90
        else:
            (trial,) = (
                each for each in read_result(tmp_path / search, SearchResult).trials if each.student == "teacher"
            )
            assert trial.score > 90
            assert trial.parameters == uncut.fewer_pieces.parameters


@pytest.mark.slow
def test_pieces_go_where_the_size_asks_for_it(teacher: Path, finished: Finished, tmp_path: Path) -> None:
    """Would catch a smaller vocabulary that nobody needs, a student that is refused though fewer pieces make it small
    enough, one that is trained on the other vocabulary's tokens, and a looser limit that leaves it as it was."""
    run = tmp_path / "run"

    def made(most: float, **flags: Any) -> tuple[int, CompressResult]:
        """How many pieces the student's tokenizer has."""
        given = {"run.out": run, "student.model": "layers:0", "contract.max_size_mb": most, "contract.search": "off"}
        config = tiny_runs.config_for(finished.folder, teacher, "quantize.vector_bits=8", flags=given | flags)
        result = tiny_runs.compress(config, until=None if most < 100 else "quantize")
        return Tokenizer.from_file(str(run / "export" / "tokenizer.json")).get_vocab_size(), result

    assert made(100.0)[0] == len(PIECES)
    with_all = np.load(run / "student" / "trained_logits.npy")
    (measured,) = read_result(run, CandidatesResult).candidates.values()
    assert measured.fewer_pieces is not None
    sizes = [
        min(each.size_mb for each in costs.variants.values() if isinstance(each, Costs))
        for costs in (measured, measured.fewer_pieces)
    ]
    limit = sum(sizes) / 2
    pieces, result = made(limit)
    assert pieces == len(read_kept(run / "vocabulary" / "pieces")) < len(PIECES)
    assert result.result is not None
    table: dict[str, Any] = dict(result.metrics)
    assert table["int8"]["accuracy"] > 85
    assert result.artifact is not None
    with Engine.load(result.artifact, variant="fp32", device="cpu") as engine:
        answers = engine.predict([("w1 w9", "w4"), ("w2 never3", "w4")]).argmax(1)
        assert answers.tolist() == [engine.labels.index(name) for name in ("yes", "no")]
    assert all(result.stages[name].skipped for name in ("data", "vocabulary", "candidates", "teacher", "targets"))
    with_fewer = np.load(run / "student" / "trained_logits.npy")
    # The same answers as of students that were told how many pieces to have.
    for vocabulary, answers in (("auto", with_fewer), ("all", with_all)):
        shutil.rmtree(run / "student")
        assert made(100.0, **{"student.vocabulary": vocabulary})[0] == (pieces if vocabulary == "auto" else len(PIECES))
        np.testing.assert_allclose(np.load(run / "student" / "trained_logits.npy"), answers, atol=1e-4)
    with pytest.raises(OutOfReach, match="no possible student keeps the contract"):
        made(limit, **{"student.vocabulary": "all"})


@pytest.mark.slow
def test_a_teacher_whose_pieces_have_no_parts_keeps_them_all(finished: Finished, tmp_path: Path) -> None:
    """Would catch a contract's size that ends a run whose vocabulary cannot be made smaller; and a refusal that is lost
    because such a run was there before."""
    flags: dict[str, Any] = {"run.out": tmp_path / "run", "student.model": "layers:0", "contract.max_size_mb": 100.0}
    config = tiny_runs.config_for(finished.folder, finished.teacher, "contract.search=off", flags=flags)
    tiny_runs.compress(config, until="candidates")
    assert read_result(tmp_path / "run", VocabularyResult).pieces is None
    (measured,) = read_result(tmp_path / "run", CandidatesResult).candidates.values()
    assert measured.fewer_pieces is None
    asked = tiny_runs.config_for(finished.folder, finished.teacher, flags=flags | {"student.vocabulary": "auto"})
    with pytest.raises(InputError, match="not made of smaller ones"):
        tiny_runs.compress(asked, until="candidates")


@pytest.mark.slow
def test_a_search_beside_a_checkpoint_tries_fewer_pieces_of_the_teacher(
    teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    """Would catch a trial that only the families whose student is made of the teacher have; and one that changes what
    stage data is known by, so that an artifact's second model would be taken for one of other rows."""
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    made = {}
    for size in (None, 100.0):
        flags = {"run.out": tmp_path / "run", "student.model": str(other), "contract.max_latency_ms": 1000.0}
        flags |= {} if size is None else {"contract.max_size_mb": size}
        config = tiny_runs.config_for(finished.folder, teacher, "contract.search=quick", flags=flags)
        result = tiny_runs.compress(config, until="candidates")
        made[size] = result.stages["data"].fingerprint
    assert len(set(made.values())) == 1
    measured = read_result(tmp_path / "run", CandidatesResult).candidates
    assert measured[str(other)].fewer_pieces is None
    assert all(each.fewer_pieces is not None for name, each in measured.items() if name != str(other))


@pytest.mark.slow
def test_bits_that_were_set_by_hand_are_measured_anew(teacher: Path, finished: Finished, tmp_path: Path) -> None:
    """Would catch a student that is trained for a size which only 4 bits keep, where 8 were asked for."""
    skipped = []
    for sets in ((), ("quantize.vector_bits=8",), ("quantize.vector_bits=8",), ("quantize.vector_bits=4",)):
        flags = {"run.out": tmp_path / "run", "student.model": "layers:0", "contract.max_size_mb": 100.0}
        config = tiny_runs.config_for(finished.folder, teacher, "contract.search=off", *sets, flags=flags)
        skipped.append(tiny_runs.compress(config, until="candidates").stages["candidates"].skipped)
    assert skipped == [False, False, True, False]


@pytest.mark.slow
def test_the_teacher_with_another_vocabulary_is_another_student(
    teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    """Would catch a finished stage that is taken for the other vocabulary's: nothing is trained that would differ."""
    flags = {"run.out": tmp_path / "run", "student.model": "teacher"}
    for vocabulary in ("all", "auto", "all"):
        config = tiny_runs.config_for(finished.folder, teacher, flags=flags | {"student.vocabulary": vocabulary})
        result = tiny_runs.compress(config, until="export")
        assert not result.stages["student"].skipped
        tokenizer = Tokenizer.from_file(str(tmp_path / "run" / "export" / "tokenizer.json"))
        assert (tokenizer.get_vocab_size() == len(PIECES)) == (vocabulary == "all")


def test_a_checkpoint_of_its_own_keeps_its_vocabulary(teacher: Path, finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    config = transformers.AutoConfig.from_pretrained(other)
    config.hidden_dropout_prob = 0.2
    config.save_pretrained(other)
    flags = {"run.out": tmp_path / "run", "student.model": str(other), "student.vocabulary": "auto"}
    with pytest.raises(InputError, match="only a student made of the teacher"):
        tiny_runs.compress(tiny_runs.config_for(finished.folder, teacher, flags=flags), until="teacher")
    assert not (tmp_path / "run" / "teacher").exists()

"""The benchmarks' own judgement."""

import sys
from pathlib import Path

import numpy as np
import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import audit, languages, noisy, search
from benchmarks.serving.mark import Mark
from kdc.serving.upstream import sequence


@pytest.mark.parametrize(
    ("least", "interval", "verdict"),
    [
        (True, (0.9, 1.1), "holds"),
        (True, (0.8, 1.1), "not shown"),
        (True, (0.7, 0.8), "fails"),
        (False, (0.7, 0.8), "holds"),
        (False, (0.8, 1.1), "not shown"),
        (False, (0.9, 1.1), "fails"),
        (True, None, "holds"),
        (False, None, "fails"),
    ],
)
def test_a_mark_is_shown_only_by_its_whole_interval(
    least: bool, interval: tuple[float, float] | None, verdict: str
) -> None:
    mark = Mark("what", least, 0.85, 0.9, interval)
    assert mark.verdict == verdict
    assert mark.holds is (verdict == "holds")


def test_students_are_ranked_against_their_full_training() -> None:
    """Would catch correlations with a column of its own, and the best of the full training told as that of a share."""
    brief, full = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, {"a": 10.0, "b": 30.0, "c": 40.0, "d": 20.0}
    results = {
        name: {"27%": search.Trained(brief[name]), search.FULL: search.Trained(full[name], 100 - full[name])}
        for name in "abcd"
    }

    *rows, _, told = search.table(results).splitlines()

    assert rows[-4:] == [f"| {name} | {brief[name]} | {full[name]} | {100 - full[name]} |" for name in "abcd"]
    # Ranks 1 2 3 4 against 1 3 4 2: 1 - 6 * (0 + 1 + 1 + 4) / (4 * 15) = 0.4.
    assert "rank correlation 0.40 with the full training on the tuning set, -0.40 on the evaluation rows" in told
    assert told.endswith("its best has 80.0 there in full, the best of all 90.0")


def test_a_simulated_service_stops_where_one_that_looks_after_each_audit_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the code that a service runs, with short epochs."""
    monkeypatch.setattr(sequence, "EPOCH", 100)
    rule = audit.Rule.of(0.05, 400)
    generator, direct = np.random.default_rng(1), []
    for gaps in generator.geometric(0.1, (20, len(rule.whole))):
        differs = np.zeros(401, np.int64)
        differs[[each for each in gaps.cumsum() if each <= 400]] = 1
        direct.append(np.inf)
        for n in range(1, 401):
            epoch = (n - 1) // 100
            newest = int(differs[100 * epoch + 1 : n + 1].sum()), n - 100 * epoch
            if sequence.is_exceeded(0.05, (int(differs[: n + 1].sum()), n), newest, epoch + 1):
                direct[-1] = n
                break
    assert 0 < np.isfinite(direct).sum() < 20

    found = audit.audits_until_stop(rule, 0.1, earlier=np.zeros(20, np.int64), before=0, seed=1)

    assert found.tolist() == direct


def test_earlier_audits_delay_a_simulated_stop_within_an_epoch_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "EPOCH", 100)
    rule = audit.Rule.of(0.05, 400)
    found = audit.audits_until_stop(rule, 1.0, earlier=np.array([0, 0]), before=100, seed=1)
    expected = next(n for n in range(1, 100) if sequence.is_exceeded(0.05, (n, 100 + n), (n, n), 2))
    assert found.tolist() == [expected, expected]
    assert not sequence.is_exceeded(0.05, (expected, 100 + expected), (0, 0), 2)  # all audits alone would not stop


def test_noise_leaves_a_stub_the_accuracy_that_was_asked_for() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 5, 2000)
    logits = 4 * np.eye(5)[labels] + random.standard_normal((2000, 5))
    noise = random.standard_normal((2000, 5))

    scale = noisy.scale_for(0.8, logits, noise, labels)

    answers = (logits + scale * noise).argmax(axis=1)
    assert (logits.argmax(axis=1) == labels).mean() > 0.95
    assert (answers == labels).mean() == pytest.approx(0.8, abs=1 / 2000)


def test_no_noise_makes_a_stub_better_than_its_teacher() -> None:
    labels = np.array([0, 1, 0, 1])
    logits = np.eye(2)[[0, 1, 1, 0]]
    with pytest.raises(SystemExit, match="less accurate"):
        noisy.scale_for(0.8, logits, np.ones((4, 2)), labels)


def test_translations_of_one_source_package_never_part(tmp_path: Path) -> None:
    packages, translations = [], {"de": "Spiel {}\n Ein Spiel\n .\n für Kinder {}", "ja": "ゲーム {}\n 説明 {}"}
    names = [f"game-{number}{part}" for number in range(40) for part in ("", "-data")]
    for name in names:
        source = f"Source: {name.removesuffix('-data')} (1.0)\n" if name.endswith("-data") else ""
        packages.append(f"Package: {name}\n{source}Section: games\nDescription-md5: {name}5\n")
    (tmp_path / "main_Packages").write_text("\n".join(packages))
    for language, text in translations.items():
        told = [f"Package: {one}\nDescription-md5: {one}5\nDescription-{language}: {text}\n" for one in names]
        written = "\n".join(each.format(one, one) for each, one in zip(told, names, strict=True))
        (tmp_path / f"main_Translation-{language}").write_text(written, encoding="utf-8")

    rows = languages.choose(languages.read_rows(tmp_path), 400)

    assert (rows[0].language, rows[0].text) == ("de", f"Spiel {rows[0].source}. Ein Spiel für Kinder {rows[0].source}")
    assert len(rows) == 2 * 40  # one of a source package and language
    for source in {row.source for row in rows}:
        assert len({row.split for row in rows if row.source == source}) == 1
    assert {row.split for row in rows} == {"train", "tune", "eval"}

"""Rows that say nearly the same: found, kept on one side of a split, and told of."""

import csv
import random
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.fields import time_of
from kdc.pipeline.data.overlap import near_rows, nearest, runs_of
from kdc.pipeline.data.prepared import open_data, prepare
from kdc.pipeline.data.splits import pick_last
from kdc.pipeline.results.data import DataReport

SENTENCE = "the old clock in the hall struck nine before anybody had gone to bed"
GOLDEN = {
    "eval": [4, 5, 8, 16, 33, 57],
    "tune": [0, 9, 13, 15, 20, 26, 31, 37, 52, 53],
    "train": [18, 21, 22, 23, 24, 25, 29, 32, 36, 38, 40, 43, 44, 45, 48, 49, 51, 56, 58, 59],
}
TASK = custom_task("own", "text", None, "label", "classification", ())


def near(*texts: str) -> set[tuple[int, int]]:
    first, second = near_rows(runs_of(texts))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_a_part_of_a_text_and_an_edited_text_are_near_it() -> None:
    part, edited = SENTENCE[:40], SENTENCE.replace("nine", "ten").upper() + "!"
    assert near(SENTENCE, part, edited, "something else that nobody ever wrote in such a hall") == {
        (0, 1),
        (0, 2),
        (1, 2),
    }


@pytest.mark.parametrize(
    "other",
    [
        "the old clock in the hall was sold to a man who came by with a cart last week",  # two of twelve runs
        "anybody had",  # says too little
        "hall the in clock old the",  # the same words
    ],
)
def test_texts_that_share_a_few_words_are_not_near(other: str) -> None:
    assert near(SENTENCE, other) == set()


def test_a_short_text_is_near_those_that_hold_it_as_it_is() -> None:
    assert near(SENTENCE, "Anybody had gone", "anybody gone had", "had anybody gone to", "gone to bed, anybody") == {
        (0, 1)
    }


def test_a_run_that_stands_everywhere_ties_nothing() -> None:
    """Would catch: a template that makes one unit of all rows."""
    texts = [f"please classify this message of a customer: {number} {1000 + number}" for number in range(150)]
    assert near(*texts) == set()


def test_texts_without_spaces_have_runs_of_characters() -> None:
    assert near("この映画はとても面白かったと思います", "映画はとても面白かった") == {(0, 1)}


@pytest.mark.parametrize(
    "text",
    ["ພາສາລາວເປັນພາສາທາງການຂອງລາວ", "ภาษาไทยเปนภาษาทมระดบเสยงของคำ", "𠀀𠀁𠀂𠀃𠀄𠀅𠀆𠀇𠀈𠀉𠀊𠀋", "ｺﾉｴｲｶﾞﾊﾄﾃﾓｵﾓｼﾛｶｯﾀ"],
    ids=["Lao", "Thai", "rare ideographs", "narrow kana"],
)
def test_scripts_without_spaces_have_runs_of_characters(text: str) -> None:
    """Would catch: a sentence that is one word, of which no part is near it."""
    assert near(text, text[2:-2]) == {(0, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "Die große Übung über schöne Häuser",
        "كانت الساعة آخر القاعة أمس",
        "그 영화는 정말로 재미있었다",
        "Tiếng Việt là ngôn ngữ",
    ],
)
def test_composed_and_decomposed_characters_are_the_same(text: str) -> None:
    assert near(text, unicodedata.normalize("NFD", text)) == {(0, 1)}


def test_vowel_signs_are_part_of_their_word() -> None:
    # The consonants are the same.
    assert near("दिन में काम किया गया था वहाँ", "दान मो कीम कीया गये थे वहु") == set()


def test_no_run_goes_from_one_text_of_a_pair_to_the_other() -> None:
    runs = runs_of([("one two", "three four"), ("one two three four five six", "seven")])
    assert runs.row.tolist() == [1, 1]


def test_the_nearest_of_other_rows_is_named() -> None:
    train = runs_of(["nothing of the kind was ever said there", SENTENCE])
    assert nearest(runs_of([SENTENCE[4:50], "a text of its own, that is what it is"]), train).tolist() == [1, -1]


def test_two_files_are_compared_though_one_has_too_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: runs that are left out, or numbered, otherwise in one file than in the other."""
    monkeypatch.setattr("kdc.pipeline.data.overlap._MOST_RUNS", 2000)
    generator = random.Random(0)
    train = [" ".join(generator.choices([f"w{number}" for number in range(2000)], k=60)) for _ in range(100)]
    parts = [" ".join(text.split()[:20]) for text in train[:3]]
    few, many = runs_of(parts), runs_of(train)
    assert few.halvings < many.halvings
    assert nearest(few, many).tolist() == [0, 1, 2]


def test_rows_are_numbered_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdc.pipeline.data.overlap._ROWS_AT_A_TIME", 2)
    others = [f"text number {number} is of its own kind and words{number}" for number in range(5)]
    assert near(SENTENCE, *others, "anybody had gone", SENTENCE[:40]) == {(0, 6), (0, 7)}


def test_boilerplate_around_one_shared_run_makes_no_neighbours() -> None:
    """Would catch: a share of the telling runs alone."""
    frame = "this message and what is attached to it is for the person it was sent to and for nobody else at all"
    texts = [f"{frame} number {number}" for number in range(150)]
    assert near(*texts, f"{frame} a b c d e f g h i", f"a b c d e f g h i {frame}") == set()


def by_force(texts: list[str]) -> set[tuple[int, int]]:
    """The definition, pair by pair."""
    runs = []
    for text in texts:
        words = text.split()
        runs.append({tuple(words[place : place + 5]) for place in range(len(words) - 4)})
    return {
        (one, other)
        for one in range(len(texts))
        for other in range(one + 1, len(texts))
        if runs[one] and runs[other] and 2 * len(runs[one] & runs[other]) >= min(len(runs[one]), len(runs[other]))
    }


def test_near_rows_are_those_of_the_definition() -> None:
    generator = random.Random(0)
    base = [generator.choices("abcdefghijklmnop", k=12) for _ in range(20)]
    texts = []
    for _ in range(100):
        words = list(generator.choice(base))
        start = generator.randint(0, 5)
        words = words[start : generator.randint(start + 5, 12)]
        if generator.random() < 0.3:
            words[generator.randrange(len(words))] = "z"
        texts.append(" ".join(words))
    assert near(*texts) == by_force(texts)
    assert len(by_force(texts)) > 50


@pytest.mark.parametrize(("rows", "tied"), [(100, True), (101, False)])
def test_a_run_is_compared_in_up_to_a_hundred_rows(rows: int, tied: bool) -> None:
    assert bool(near(*["one two three four five"] * rows)) is tied


def test_of_too_many_runs_the_least_are_left_out_that_do_by_their_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all runs, filtered by hand. Catches blocks that are thinned out otherwise than those before them."""
    generator = random.Random(1)
    texts = [" ".join(generator.choices([f"w{number}" for number in range(900)], k=30)) for _ in range(40)]
    whole = runs_of(texts)
    assert whole.halvings == 0
    monkeypatch.setattr("kdc.pipeline.data.overlap._ROWS_AT_A_TIME", 8)
    for most in (len(whole.run), 700, 300, 100):
        monkeypatch.setattr("kdc.pipeline.data.overlap._MOST_RUNS", most)
        found = runs_of(texts)
        kept = [int((whole.run % np.uint64(2**halvings) == 0).sum()) for halvings in range(10)]
        assert found.halvings == next(halvings for halvings, count in enumerate(kept) if count <= most)
        expected = whole.run % np.uint64(2**found.halvings) == 0
        assert found.run.tolist() == whole.run[expected].tolist()
        assert found.row.tolist() == whole.row[expected].tolist()
    again = whole.halved(3)
    assert (again.halvings, len(again.run)) == (3, kept[3])
    assert again.halved(2) is again
    assert again.halved(3) is again


def test_a_run_counts_once_a_row_and_the_order_of_its_words_counts() -> None:
    texts = ["x y z u v w", "a b c d e a b c d e a b c d e", "e d c b a", "a b c d e", "b a c d e"]
    rows = runs_of(texts).row.tolist()
    assert rows == [0] * 2 + [1] * 5 + [2, 3, 4]
    assert near(*texts) == {(1, 3)}


def test_the_nearest_row_shares_half_of_the_runs_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdc.pipeline.data.overlap._ROWS_AT_A_TIME", 3)  # no power of two
    words = [f"w{number}" for number in range(40)]
    others = [" ".join(words[place : place + 8]) for place in range(0, 32, 4)]  # four runs each, none in two of them
    half, quarter = " ".join(words[3:9]), " ".join([*words[:5], "q", "r", "s", "t"])
    asked = runs_of((half, "q r s t u", quarter, " ".join(words[28:33])))
    assert nearest(asked, runs_of(others)).tolist() == [1, -1, -1, 7]
    many = [*(f"p{number} is a text of its own" for number in range(7)), SENTENCE, SENTENCE[:40], SENTENCE[:38]]
    assert near(*many) >= {(7, 8), (7, 9), (8, 9)}
    assert near(*many) == by_force(many)


def rows_of(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def phrases(count: int, *, seed: int) -> list[dict[str, str]]:
    """Sentences and parts of them, three rows of each, with one label."""
    generator, words = random.Random(seed), [f"word{number}" for number in range(500)]
    rows = []
    for number in range(count):
        sentence = generator.choices(words, k=12)
        label = generator.choice(["good", "bad"])
        for part in (sentence, sentence[:8], sentence[3:]):
            rows.append({"text": " ".join(part), "label": label, "who": f"u{number % 37}", "when": str(number)})
    generator.shuffle(rows)
    return rows


def texts_of(folder: Path, split: str) -> list[str]:
    return open_data(folder).rows(split)["text"][:]


def test_no_split_parts_texts_that_are_near_each_other(tmp_path: Path) -> None:
    data = DataSettings(train=rows_of(tmp_path / "train.csv", phrases(200, seed=1)))
    prepare(tmp_path / "data", TASK, data, seed=0)
    splits = {name: texts_of(tmp_path / "data", name) for name in ("train", "tune", "eval")}
    for name, others in (("tune", "train"), ("eval", "train"), ("eval", "tune")):
        assert splits[name]
        for text in splits[name]:
            assert not any(text in other or other in text for other in splits[others])
    groups = open_data(tmp_path / "data").groups("eval")
    assert len(np.unique(groups)) == len(groups) / 3


def test_an_unlabelled_text_that_is_held_out_or_near_it_is_left_out(tmp_path: Path) -> None:
    """Would catch equal texts that are let in since they are near ones too, and those near the first row."""
    rows = phrases(200, seed=1)
    data = DataSettings(
        train=rows_of(tmp_path / "train.csv", rows),
        unlabeled=rows_of(
            tmp_path / "more.csv", [{"text": row["text"] + more} for row in rows for more in ("", " and more")]
        ),
    )
    prepare(tmp_path / "data", TASK, data, seed=0)
    tune, held_out, unlabeled = (texts_of(tmp_path / "data", name) for name in ("tune", "eval", "unlabeled"))
    assert unlabeled
    assert not any(text in more for text in tune + held_out for more in unlabeled)


def overlapping(folder: Path, count: int) -> DataReport:
    """The report of an evaluation file of 180 rows of its own, and after these so many that are near a training row."""
    train, others = phrases(200, seed=1), phrases(60, seed=2)
    parts = [{**row, "text": f"well {row['text']}"} for row in train[:count]]
    data = DataSettings(train=rows_of(folder / "train.csv", train), eval=rows_of(folder / "eval.csv", others + parts))
    return prepare(folder / "data", TASK, data, seed=0)


def test_an_evaluation_file_that_overlaps_is_told_of_with_examples(tmp_path: Path) -> None:
    report = overlapping(tmp_path, 45)
    assert report.duplicates["eval_rows_near_train"] == 45
    (warning,) = [each for each in report.warnings if "half of their runs" in each]
    assert "45 of 225 eval rows (20 %)" in warning
    assert warning.count("'well ") == 3
    marked = open_data(tmp_path / "data").rows("eval")["overlaps"][:]
    assert sum(marked) == 45
    assert not any(marked[:180])


def test_few_rows_that_overlap_are_counted_and_not_warned_of(tmp_path: Path) -> None:
    report = overlapping(tmp_path, 5)
    assert report.duplicates["eval_rows_near_train"] == 5
    assert not any("half of their runs" in each for each in report.warnings)


def test_a_group_of_a_persons_own_is_never_parted(tmp_path: Path) -> None:
    rows = phrases(200, seed=1)
    data = DataSettings(train=rows_of(tmp_path / "train.csv", rows), group="who")
    prepare(tmp_path / "data", TASK, data, seed=0)
    who = {row["text"]: row["who"] for row in rows}
    users = [{who[text] for text in texts_of(tmp_path / "data", name)} for name in ("train", "tune", "eval")]
    assert all(users)
    assert len(set.union(*users)) == sum(map(len, users))
    assert len(np.unique(open_data(tmp_path / "data").groups("eval"))) == len(users[2])


def test_unlabelled_rows_of_a_group_that_is_held_out_are_left_out(tmp_path: Path) -> None:
    rows = phrases(200, seed=1)
    more = [{"text": f"a text of nobody else, number {number}", "who": f"u{number % 37}"} for number in range(300)]
    data = DataSettings(
        train=rows_of(tmp_path / "train.csv", rows), unlabeled=rows_of(tmp_path / "more.csv", more), group="who"
    )
    prepare(tmp_path / "data", TASK, data, seed=0)
    who = {row["text"]: row["who"] for row in [*rows, *more]}
    users = {name: {who[text] for text in texts_of(tmp_path / "data", name)} for name in ("tune", "eval", "unlabeled")}
    assert users["unlabeled"]
    assert not users["unlabeled"] & (users["tune"] | users["eval"])


def test_an_unlabelled_file_may_lack_the_group(tmp_path: Path) -> None:
    more = [{"text": f"a text of nobody else, number {number}"} for number in range(30)]
    data = DataSettings(
        train=rows_of(tmp_path / "train.csv", phrases(200, seed=1)),
        unlabeled=rows_of(tmp_path / "more.csv", more),
        group="who",
    )
    prepare(tmp_path / "data", TASK, data, seed=0)
    assert len(texts_of(tmp_path / "data", "unlabeled")) == 30


def test_rows_that_all_belong_together_cannot_be_split_and_are_told_why(tmp_path: Path) -> None:
    rows = [{**row, "who": "everybody"} for row in phrases(200, seed=1)]
    with pytest.raises(InputError, match="600 belong together"):
        prepare(tmp_path / "data", TASK, DataSettings(train=rows_of(tmp_path / "t.csv", rows), group="who"), seed=0)


@pytest.mark.parametrize(("merged", "warns"), [(10, True), (1, False)])
def test_a_group_that_fits_into_no_slice_is_told_of(tmp_path: Path, merged: int, warns: bool) -> None:
    """Would catch: an evaluation without the rows of one user, who wrote a quarter of all, and no word of it."""
    rows = [
        {**row, "who": "everybody's" if int(row["who"][1:]) < merged else row["who"]} for row in phrases(400, seed=1)
    ]
    data = DataSettings(train=rows_of(tmp_path / "train.csv", rows), group="who")
    report = prepare(tmp_path / "data", TASK, data, seed=0)
    assert any("belong together" in warning for warning in report.warnings) is warns


def test_too_few_rows_are_not_blamed_on_rows_that_belong_together(tmp_path: Path) -> None:
    rows = [{"text": f"text{number}", "label": f"label{number}"} for number in range(4)]
    with pytest.raises(InputError, match="too few rows to hold out") as caught:
        prepare(tmp_path / "run", TASK, DataSettings(train=rows_of(tmp_path / "train.csv", rows)), seed=0)
    assert "belong together" not in str(caught.value)


def test_a_seed_gives_the_rows_that_it_always_gave(tmp_path: Path) -> None:
    """Answers of a black box know rows by their numbers: the same seed must choose the same rows. The numbers were
    written down once."""
    rows = [{"text": f"text{number}", "label": "yes" if number % 3 else "no"} for number in range(60)]
    data = DataSettings(train=rows_of(tmp_path / "train.csv", rows), max_train_rows=20)
    prepare(tmp_path / "run", TASK, data, seed=2)
    chosen = {
        split: sorted(int(text.removeprefix("text")) for text in texts_of(tmp_path / "run", split))
        for split in ("eval", "tune", "train")
    }
    assert chosen == GOLDEN


def test_the_last_rows_by_time_are_the_evaluation(tmp_path: Path) -> None:
    rows = phrases(200, seed=1)
    data = DataSettings(train=rows_of(tmp_path / "train.csv", rows), time="when")
    prepare(tmp_path / "data", TASK, data, seed=0)
    when = {row["text"]: int(row["when"]) for row in rows}
    evaluated = [when[text] for text in texts_of(tmp_path / "data", "eval")]
    assert min(evaluated) > max(when[text] for name in ("train", "tune") for text in texts_of(tmp_path / "data", name))
    assert len(evaluated) == pytest.approx(60, abs=3)


@pytest.mark.parametrize("turned", [False, True])
def test_a_short_text_is_found_within_those_of_another_file(turned: bool, tmp_path: Path) -> None:
    """Whichever of the two files has it. Would catch short texts that are looked for in their own file alone."""
    rows = phrases(400, seed=3)
    short = [" ".join(row["text"].split()[1:5]) for row in rows]
    one, other = (
        rows_of(tmp_path / f"{name}.csv", made)
        for name, made in (
            ("long", rows),
            ("short", [row | {"text": text} for row, text in zip(rows, short, strict=True)]),
        )
    )
    files = {"train": other, "eval": one} if turned else {"train": one, "eval": other}
    report = prepare(tmp_path / "data", TASK, DataSettings(**files, group=None), seed=0)
    assert report.duplicates["eval_rows_near_train"] >= 390


def test_rows_of_a_group_that_is_trained_on_overlap(tmp_path: Path) -> None:
    """Would catch an evaluation of known users that is only counted: it is told with examples, and the metric stands
    apart for the others."""
    words = iter(range(10**6))

    def row(place: int, who: str) -> dict[str, str]:
        return {
            "text": " ".join(f"w{next(words)}" for _ in range(8)),
            "label": "xy"[place % 2],
            "who": who,
            "when": "1",
        }

    train = rows_of(tmp_path / "train.csv", [row(place, f"u{place // 4}") for place in range(1200)])
    known = [row(place, f"u{place}") for place in range(90)]
    evaluation = rows_of(tmp_path / "eval.csv", known + [row(place, f"new{place}") for place in range(110)])
    report = prepare(tmp_path / "data", TASK, DataSettings(train=train, eval=evaluation, group="who"), seed=0)
    overlaps = open_data(tmp_path / "data").rows("eval")["overlaps"][:]
    assert list(overlaps) == [True] * 90 + [False] * 110
    assert report.duplicates["eval_rows_of_groups_in_train"] == 90
    (told,) = (warning for warning in report.warnings if "90 of 200 eval rows" in warning)
    assert told.count("' and '") == 3


def test_nothing_is_trained_on_that_is_later_than_the_evaluation_begins(tmp_path: Path) -> None:
    """One user has many late rows, for which there is no room, and another an old row beside late ones. Would catch a
    model that is asked about the past, and one that knows the future."""
    rows = [
        {"text": f"a{place} b{place} c{place}", "label": "xy"[place % 2], "who": f"u{place}"} for place in range(1200)
    ]
    for place, row in enumerate(rows):
        row["when"] = str(place)
        if 1010 <= place < 1200 and place % 3 == 0:
            row["who"] = "much"
        if place in (4, 1195):
            row["who"] = "long"
    data = DataSettings(train=rows_of(tmp_path / "train.csv", rows), group="who", time="when")
    report = prepare(tmp_path / "data", TASK, data, seed=0)
    when = {row["text"]: int(row["when"]) for row in rows}
    used = {name: [when[text] for text in texts_of(tmp_path / "data", name)] for name in ("train", "tune", "eval")}
    assert max(used["train"] + used["tune"]) < min(used["eval"])
    assert len(used["eval"]) > 60
    assert report.unused_train_rows == 1200 - sum(map(len, used.values())) > 0


def test_time_and_an_evaluation_file_contradict_each_other(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "train.csv", phrases(200, seed=1))
    with pytest.raises(InputError, match="nothing to choose"):
        prepare(tmp_path / "data", TASK, DataSettings(train=file, eval=file, time="when"), seed=0)


@pytest.mark.parametrize(("column", "message"), [("who", "group is missing"), ("when", "neither a number nor an ISO")])
def test_a_row_without_group_or_time_is_told_of(tmp_path: Path, column: str, message: str) -> None:
    rows = phrases(200, seed=1)
    rows[7][column] = " "
    asked = {"group": "who"} if column == "who" else {"time": "when"}
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "data", TASK, DataSettings(train=rows_of(tmp_path / "train.csv", rows), **asked), seed=0)


def test_times_are_numbers_or_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a date without a zone that means another moment on another machine."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    assert time_of("12.5", "when") == 12.5
    assert time_of("1970-01-02", "when") == time_of("1970-01-02T00:00:00Z", "when") == 86400
    assert time_of("1970-01-01T02:00:00+01:00", "when") == 3600
    monkeypatch.undo()
    time.tzset()


def test_a_unit_that_is_too_large_for_the_end_is_left_out() -> None:
    units = np.array([0] * 50 + list(range(1, 51)))
    times = np.array([99.0] * 50 + list(range(50)))
    chosen, older = pick_last(units, times, 10)
    assert np.flatnonzero(chosen).tolist() == list(range(90, 100))
    assert np.flatnonzero(older).tolist() == list(range(50, 91))[:-1]  # and nothing of what is too large and later

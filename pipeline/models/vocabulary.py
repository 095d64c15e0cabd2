"""A vocabulary of the pieces that a task's texts use (Abdaoui et al. 2020, arXiv 2010.05609, for languages).

Smaller pieces still spell every text, unless a character is no piece by itself. All pieces with such a character stay,
but the text before it may be split differently, and its word become unknown.
"""

import copy
import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from kdc.common.errors import InputError
from kdc.pipeline.models import loading

_KEPT = "kept.npy"  # old ids of the pieces, by new id
_COVERED = 0.01  # share of used pieces
_FEW = 100  # pieces of a script; BERT has fewer Cyrillic ones
_NAMED = 5


def save_smaller(source: str, used: Iterable[int], least: int, folder: Path, prefix: str = "") -> int:
    """Replace `folder` by a smaller tokenizer and the model's config; return the number of pieces.

    Args:
        least: number to reach with the most frequent others.

    Raises:
        InputError: pieces not made of smaller ones, pieces without vectors, or a padding id that must stay.
    """
    tokenizer, config = loading.load_tokenizer(source, prefix), loading.load_config(source)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = kept_pieces(whole, used, least)
    _check_ids(kept, config, tokenizer.pad_token_id)
    shutil.rmtree(folder, ignore_errors=True)  # from an interruption
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    smaller = Tokenizer.from_str(json.dumps(without_others(whole, kept)))
    loading.with_backend(tokenizer, smaller).save_pretrained(folder)
    np.save(folder / _KEPT, np.array(kept, dtype=np.int64))
    return len(kept)


def _check_ids(kept: Sequence[int], config: Any, pad: int | None) -> None:
    if kept[-1] >= config.vocab_size:
        raise _needs_all(
            "the tokenizer has pieces that the model has no vectors for, so its vocabulary cannot be made smaller",
            f"piece {kept[-1]}, {config.vocab_size} vectors",
        )
    if pad is not None and config.model_type in loading.COUNTS_FROM_PADDING and _new_ids(kept).get(pad) != pad:
        raise _needs_all(
            "this architecture counts positions by the id of padding, which a smaller vocabulary would change",
            f"{config.model_type}, padding {pad}",
        )


def _needs_all(problem: str, given: str | None) -> InputError:
    return InputError(problem, given=given, remedy="--set student.vocabulary=all")


def _new_ids(kept: Iterable[int]) -> dict[int, int]:
    return {int(old): new for new, old in enumerate(kept)}


def read_kept(folder: Path) -> NDArray[np.int64]:
    return np.load(folder / _KEPT)


def cut_vectors(model: Any, folder: Path) -> None:
    """Keep a smaller vocabulary's vectors; raise InputError if no plain table holds them."""
    kept = read_kept(folder)
    new = _new_ids(kept)
    whole = model.get_input_embeddings().weight
    smaller = nn.Parameter(whole.detach()[torch.from_numpy(kept)].clone())
    tables = [table for table in model.modules() if isinstance(table, nn.Embedding) and table.weight is whole]
    if not tables:
        raise _needs_all(
            "this architecture's token vectors are in a layer of its own, which cannot be made smaller",
            type(model.get_input_embeddings()).__name__,
        )
    for table in tables:  # encoder and decoder may share them
        table.weight = smaller
        table.num_embeddings = len(kept)
        table.padding_idx = None if table.padding_idx is None else new.get(table.padding_idx)
    model.config.vocab_size = len(kept)
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, name, new.get(value))


def kept_pieces(tokenizer: dict[str, Any], used: Iterable[int], least: int) -> list[int]:
    """Ascending old ids of the pieces that stay.

    Raises:
        InputError: as `save_smaller`.
    """
    model = tokenizer["model"]
    kinds = {"WordPiece": _wordpiece, "Unigram": _unigram, "BPE": _bpe}
    if model.get("type") not in kinds:
        raise _needs_all(
            "this tokenizer's pieces are not made of smaller ones, so none can be left out", model.get("type")
        )
    pieces = kinds[model["type"]](model)
    kept = pieces.needed | {token["id"] for token in tokenizer["added_tokens"]}
    for piece in used:
        pieces.keep(piece, kept)
    for piece in pieces.by_frequency:
        if len(kept) >= least:
            break
        pieces.keep(piece, kept)
    return sorted(kept)


def without_others(tokenizer: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    new = _new_ids(kept)
    smaller, model = copy.deepcopy(tokenizer), tokenizer["model"]
    if model["type"] == "Unigram":
        # Added tokens may have ids beyond the list.
        smaller["model"]["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        smaller["model"]["unk_id"] = new.get(model.get("unk_id"))
    else:
        smaller["model"]["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        remaining = smaller["model"]["vocab"]
        smaller["model"]["merges"] = [
            merge for merge in model["merges"] if set(_merged(merge, model)) <= remaining.keys()
        ]
    for token in smaller["added_tokens"]:
        token["id"] = new[token["id"]]
    if smaller.get("padding"):
        smaller["padding"]["pad_id"] = new[smaller["padding"]["pad_id"]]
    _renumber(smaller.get("post_processor"), new)
    return smaller


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    if processor is None:
        return
    for part in processor.get("processors", ()):  # a sequence
        _renumber(part, new)
    special = processor.get("special_tokens", {})
    for token in special.values():
        token["ids"] = [new[old] for old in token["ids"]]
    for name in ("cls", "sep"):  # BERT and RoBERTa: (token, id)
        if name in processor:
            processor[name][1] = new[processor[name][1]]


@dataclass(frozen=True)
class _Pieces:
    needed: set[int]  # without them, characters are lost or change
    by_frequency: list[int]  # most frequent first
    parents: dict[int, tuple[int, int]] = field(default_factory=dict)  # the pieces it merges

    def keep(self, piece: int, kept: set[int]) -> None:
        waiting = [piece]
        while waiting:
            one = waiting.pop()
            if one not in kept:
                kept.add(one)
                waiting += self.parents.get(one, ())


def _wordpiece(model: dict[str, Any]) -> _Pieces:
    """Ids are by frequency. With the prefix, pieces continue words."""
    prefix, vocabulary = model["continuing_subword_prefix"], model["vocab"]
    begins = {piece for piece in vocabulary if len(piece) == 1}
    goes_on = {
        piece[len(prefix) :] for piece in vocabulary if piece.startswith(prefix) and len(piece) == len(prefix) + 1
    }

    def is_needed(piece: str) -> bool:
        written = piece.removeprefix(prefix)
        if len(written) == 1:
            return True
        if piece.startswith(prefix):
            return not set(written) <= goes_on
        return not (written[:1] in begins and set(written[1:]) <= goes_on)

    unknown = model["unk_token"]
    needed = {number for piece, number in vocabulary.items() if piece == unknown or is_needed(piece)}
    return _Pieces(needed, sorted(vocabulary.values()))


def _unigram(model: dict[str, Any]) -> _Pieces:
    pieces = [piece for piece, _ in model["vocab"]]
    singles = {piece for piece in pieces if len(piece) == 1}
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    needed = {
        number for number, piece in enumerate(pieces) if len(piece) == 1 or piece in bytes_ or not set(piece) <= singles
    }
    if model.get("unk_id") is not None:
        needed.add(model["unk_id"])
    shares = [share for _, share in model["vocab"]]
    return _Pieces(needed, sorted(range(len(pieces)), key=lambda number: -shares[number]))


def _bpe(model: dict[str, Any]) -> _Pieces:
    """Ids are by frequency. Parents stay: only their merge makes a piece."""
    vocabulary: dict[str, int] = model["vocab"]
    parents: dict[int, tuple[int, int]] = {}
    for merge in model["merges"]:
        first, second, both = (vocabulary[piece] for piece in _merged(merge, model))
        parents.setdefault(both, (first, second))
    needed = {number for number in vocabulary.values() if number not in parents}
    return _Pieces(needed, sorted(vocabulary.values()), parents)


def _merged(merge: Any, model: dict[str, Any]) -> tuple[str, str, str]:
    """Older files have one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def covered_scripts(whole: Tokenizer, kept: Iterable[int], used: Iterable[int]) -> tuple[str, str]:
    """In words: scripts of `used` pieces, and scripts that lose nearly all pieces ("" if none)."""
    scripts = {piece: script for piece in range(whole.get_vocab_size()) if (script := _script(whole.decode([piece])))}
    every, left, seen = (Counter(scripts[piece] for piece in ids if piece in scripts) for ids in (scripts, kept, used))
    covered = {script: count / seen.total() for script, count in seen.most_common() if count >= _COVERED * seen.total()}
    lost = [script for script, pieces in (every - left).most_common() if pieces >= _FEW and script not in covered]
    named = ", ".join(f"{script} ({left[script]} of {every[script]} pieces)" for script in lost[:_NAMED])
    named += f" and {len(lost) - _NAMED} others" if len(lost) > _NAMED else ""
    note = (
        f"the student spells words of these scripts by single characters, since the texts have hardly any: {named}. If "
        "requests may have them, give such texts to --unlabeled, or --set student.vocabulary=all"
    )
    return ", ".join(f"{share:.0%} {script}" for script, share in covered.items()), note if lost else ""


def _script(piece: str) -> str | None:
    """By the first letter's name: Python lacks Unicode's table."""
    for letter in unicodedata.normalize("NFKC", piece):
        if unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo"):
            name = unicodedata.name(letter, "?").split(" ")[0]
            return "Han" if name == "CJK" else name.title()
    return None

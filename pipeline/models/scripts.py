"""Which scripts a smaller vocabulary covers."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer

_COVERED = 0.01  # of the pieces that the texts use
_FEW = 100  # pieces; BERT has fewer of Cyrillic
_NAMED = 5


def covered_scripts(whole: Tokenizer, kept: Iterable[int], used: Iterable[int]) -> tuple[str, str]:
    """In words: the scripts of the `used` pieces, and those that lose nearly all their pieces ("" if none)."""
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
    """Of the first letter, by its name, since Python lacks Unicode's own table."""
    for letter in unicodedata.normalize("NFKC", piece):
        if unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo"):
            name = unicodedata.name(letter, "?").split(" ")[0]
            return "Han" if name == "CJK" else name.title()
    return None

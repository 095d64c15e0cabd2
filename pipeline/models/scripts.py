"""Which scripts a smaller vocabulary covers."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer

_COVERED = 0.01  # of the pieces that the texts use
_FEW = 100  # pieces; as BERT's of Cyrillic
_NAMED = 5


def covered_scripts(whole: Tokenizer, kept: Iterable[int], used: Iterable[int]) -> tuple[str, str]:
    """In words: the scripts of the `used` pieces, and those that lose nearly all their pieces ("" if none)."""
    scripts = {piece: script for piece in range(whole.get_vocab_size()) if (script := _script(whole.decode([piece])))}
    every, left, seen = (Counter(scripts[piece] for piece in ids if piece in scripts) for ids in (scripts, kept, used))
    shares = {script: count / seen.total() for script, count in seen.most_common()}
    covered = ", ".join(f"{share:.0%} {script}" for script, share in shares.items() if share >= _COVERED)
    lost = [script for script, _ in (every - left).most_common() if shares.get(script, 0) < _COVERED]
    lost = [script for script in lost if every[script] - left[script] >= _FEW]
    if not lost:
        return covered, ""
    named = ", ".join(f"{script} ({left[script]} of {every[script]} pieces)" for script in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} others" if len(lost) > _NAMED else ""
    return covered, (
        f"the student spells words of these scripts by single characters, since the texts have hardly any: {named}"
        f"{more}. If requests may have them, give such texts to --unlabeled, or --set student.vocabulary=all"
    )


def _script(piece: str) -> str | None:
    """Of the first letter, by its name; Unicode's own table is not in Python."""
    for letter in unicodedata.normalize("NFKC", piece):
        if unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo"):
            name = unicodedata.name(letter, "?").split(" ")[0]
            return "Han" if name == "CJK" else name.title()
    return None

"""Stage `vocabulary`: a tokenizer with fewer pieces.

Reads `data/`. Writes `pieces/` and `tokens-fewer/`.
"""

import shutil
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.pipeline.data.prepared import FEWER
from kdc.pipeline.data.tokens import tokenise
from kdc.pipeline.models import loading
from kdc.pipeline.models.vocabulary import covered_scripts, read_kept, save_smaller
from kdc.pipeline.results.data import VocabularyResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import PIECES


def depends_on(run: Run) -> dict[str, Any]:
    return {"vocabulary": run.config.student.vocabulary}


def run(run: Run, out: Path) -> VocabularyResult:
    """Raise InputError if a requested reduction is impossible."""
    data, asked, length = run.data(), run.config.student.vocabulary, run.max_length(FEWER)
    used, long = data.learned_pieces(), run.config.long.of(length)
    source, prefix, least = run.config.teacher.model, run.config.data.prefix, asked if isinstance(asked, int) else 0
    try:
        count = save_smaller(source, used, least, out / PIECES, prefix)
        tokenizer = loading.load_tokenizer(str(out / PIECES))
        tokens = tokenise(data.folder, FEWER, tokenizer, length, on_rows=run.progress, long=long, out=out)
    except InputError as error:
        if asked is not None:
            raise
        shutil.rmtree(out / PIECES, ignore_errors=True)
        return VocabularyResult(headline=f"no smaller vocabulary is tried: {error.what}")
    scripts, note = covered_scripts(loading.load_tokenizer(source).backend_tokenizer, read_kept(out / PIECES), used)
    if note and asked is not None:
        run.say(f"warning: {note}")
    whose = "a student has" if asked is not None else "a student may have, if the contract's size needs it,"
    headline = f"{whose} {count} pieces; the texts use {len(used)} ({scripts})"
    return VocabularyResult(pieces=count, tokens=tokens, note=note, headline=headline)

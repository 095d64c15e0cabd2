"""Artifacts in model repositories of the Hugging Face hub: writing them. A push is one commit, which is there or not.

`huggingface_hub` does the work. It does not send large files again that it uploaded before a push was cut off.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.artifact.stores.addresses import HUB, Repository
from kdc.artifact.stores.hub import TIMEOUT_S, HubSource, asking_hub, hub_api
from kdc.artifact.stores.sources import Outgoing
from kdc.common.errors import KdcError
from kdc.common.files import sha256_of
from kdc.common.progress import Meter


def push_to_hub(place: Repository, artifact: Outgoing, *, public: bool, meter: Meter) -> tuple[int | None, str]:
    """Commit the files that differ, and remove those of the artifact before. A missing repository is made.

    Args:
        place: repository, and the branch if it shall not be the default one.
        artifact: what to commit.
        public: make a new repository public.
        meter: says whether somebody watches; the library then draws bars of its own.

    Returns:
        The size of the files that differ in bytes (None: all was there), and the address of the commit.

    Raises:
        InputError: this token may not see the repository.
        KdcError: the hub refused, or did not answer.
    """
    manifest = artifact.manifest
    with asking_hub(str(place)):
        api = hub_api()
        before = _repository(api, place, public)
        stored = {file.rfilename for file in before.siblings or ()}
        differing = _differing(before, artifact)
        if not differing:
            return None, f"{HUB}{place.name}@{before.sha}"
        files = [name for name in differing if name != MANIFEST_NAME]
        operations = _additions(artifact, files) + _removals(place, before.sha, manifest, stored)
        with _bars(meter.is_shown), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the library warns of a model card without metadata
            commit = api.create_commit(
                place.name,
                operations,
                revision=place.revision,
                parent_commit=before.sha,
                commit_message=f"{manifest.task.name}: artifact {manifest.sha256[:12]}",
            )
        after = api.repo_info(place.name, revision=commit.oid, files_metadata=True, timeout=TIMEOUT_S)
        # Because of a .gitignore, say, the hub leaves files out without an error.
        if lost := _differing(after, artifact):
            raise KdcError(
                "the hub took the commit without some files",
                given=f"{HUB}{place.name}: {', '.join(lost)}",
                remedy="check the .gitignore of the repository, then push again",
            )
    return sum(manifest.files[name].size for name in files) + len(artifact.content), f"{HUB}{place.name}@{commit.oid}"


def _repository(api: Any, place: Repository, public: bool) -> Any:
    """The branch as it is, with its files. A repository or branch that is missing is made."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def ask(revision: str | None) -> Any:
        return api.repo_info(place.name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)

    try:
        return ask(place.revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(place.name, private=not public)
    except RevisionNotFoundError:
        pass  # the repository is there, and the branch is made below
    if place.revision is not None:
        api.create_branch(place.name, branch=place.revision, exist_ok=True)
    return ask(place.revision)


def _differing(commit: Any, artifact: Outgoing) -> list[str]:
    """The artifact's files, the manifest included, that a commit of the hub does not hold as they are here."""
    stored = {file.rfilename: file for file in commit.siblings or ()}
    names = [*artifact.manifest.files, MANIFEST_NAME]
    return [name for name in names if name not in stored or not _is_same(stored[name], artifact.folder / name)]


def _is_same(stored: Any, path: Path) -> bool:
    """Whether the hub's file has the same bytes: by SHA-256 where it is large, by git's hash elsewhere."""
    if stored.size != path.stat().st_size:
        return False
    if stored.lfs is not None:
        return bool(stored.lfs.sha256 == sha256_of(path))
    content = b"blob %d\0" % stored.size + path.read_bytes()
    return bool(stored.blob_id == hashlib.sha1(content, usedforsecurity=False).hexdigest())


def _additions(artifact: Outgoing, files: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(name, str(artifact.folder / name)) for name in files]
    for name, addition in zip(files, additions, strict=True):
        if addition.upload_info.sha256.hex() != artifact.manifest.files[name].sha256:
            raise KdcError(
                "a file of the artifact changed while it was read", given=artifact.folder / name, remedy="push again"
            )
    return [*additions, CommitOperationAdd(MANIFEST_NAME, artifact.content)]


def _removals(place: Repository, commit: str, manifest: Manifest, stored: set[str]) -> list[Any]:
    """Remove the files that only the artifact before had. Whatever else is in the repository stays."""
    from huggingface_hub import CommitOperationDelete

    if MANIFEST_NAME not in stored:
        return []
    try:
        old, _ = HubSource(Repository(place.name, commit)).read_manifest()
    except KdcError:  # the old manifest is damaged, so that nobody knows its files
        return []
    return [CommitOperationDelete(name) for name in sorted(old.files.keys() - manifest.files.keys()) if name in stored]


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Let the library draw its own progress bars only where somebody watches."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    hide = not shown and not utils.are_progress_bars_disabled()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            utils.enable_progress_bars()

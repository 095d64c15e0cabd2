"""Artifacts in model repositories of the Hugging Face hub: reading them. `hub_push.py` writes.

Token, endpoint and API calls are those of `huggingface_hub`. The files are downloaded here, so that a server that sends
too many bytes is stopped, and an interrupted download goes on by a range request.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from kdc.artifact.stores.addresses import Repository
from kdc.artifact.stores.sources import Opened, Source
from kdc.common.errors import InputError, KdcError
from kdc.common.places import reaching

TIMEOUT_S = 30.0
_TRIES = 4  # attempts in a row that bring no byte
_PAUSE_S = 0.5  # before the second attempt; twice as long before each further one
_CHUNK_BYTES = 1024 * 1024
_REMEDY = (
    "check the name and the network; private repositories and pushes need HF_TOKEN (or `hf auth login`); "
    "the same command goes on where this one stopped"
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HubSource(Source):
    """An artifact in a repository, at one commit, so that a push during the download changes nothing.

    Args:
        place: repository and revision.

    Raises:
        InputError: there is no such repository or revision.
        KdcError: the hub refused, or did not answer.
    """

    def __init__(self, place: Repository) -> None:
        self._name = place.name
        self.shown = str(place)
        with asking_hub(self.shown):
            api = hub_api()
            self._commit = api.repo_info(place.name, revision=place.revision, timeout=TIMEOUT_S).sha
        self._endpoint = api.endpoint
        self._client = httpx.Client(
            follow_redirects=True,
            max_redirects=5,
            timeout=TIMEOUT_S,
            event_hooks={"request": [lambda request: _check_safe(str(request.url), self._endpoint)]},
        )

    def open(self, name: str, offset: int = 0) -> Opened:
        """A file from a byte on; see `Source`."""
        response = self._ask(name, offset)
        start, size = _extent(response)
        return Opened(start, size, self._chunks(name, response))

    def _chunks(self, name: str, response: httpx.Response) -> Generator[bytes, None, None]:
        """The bytes of a response; where the connection breaks, a new request goes on at the same position."""
        position, size = _extent(response)
        failures = 0
        with reaching(f"{self.shown}/{name}", _REMEDY):
            try:
                while True:
                    try:
                        # Raw, because decompressed bytes could be more than the size that was checked.
                        for chunk in response.iter_raw(_CHUNK_BYTES):
                            position += len(chunk)
                            failures = 0
                            yield chunk
                        return
                    except httpx.TransportError:
                        failures += 1
                        if failures == _TRIES:
                            raise
                    response.close()
                    time.sleep(_PAUSE_S * 2 ** (failures - 1))
                    response = self._ask(name, position)
                    if _extent(response) != (position, size):
                        raise KdcError(
                            "the hub changed a file while it was read", given=f"{self.shown}/{name}", remedy=_REMEDY
                        )
            finally:
                response.close()

    def _ask(self, name: str, offset: int) -> httpx.Response:
        """The response whose body holds a file from a byte on; raises what `open` does."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self._name, name, revision=self._commit, endpoint=self._endpoint)
        headers = {**build_hf_headers(), "accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        request = self._client.build_request("GET", url, headers=headers)
        with reaching(f"{self.shown}/{name}", _REMEDY, passing=(FileNotFoundError,)):
            for attempt in range(1, _TRIES + 1):
                try:
                    response = self._client.send(request, stream=True)
                except httpx.TransportError:
                    if attempt == _TRIES:
                        raise
                else:
                    status = response.status_code
                    if status in (200, 206):
                        return response
                    response.close()
                    if status == 404:
                        raise FileNotFoundError(name)
                    if attempt == _TRIES or (status != 429 and status < 500):
                        raise KdcError("the hub refused", given=f"{self.shown}/{name}: HTTP {status}", remedy=_REMEDY)
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """The byte at which a response's body begins, and the size of the whole file (None: unknown), by its headers."""
    if response.status_code == 206:
        span, _, whole = response.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        start = span.partition("-")[0]
        if not start.isdigit():
            raise KdcError("the hub answered a range with none", given=span, remedy=_REMEDY)
        return int(start), int(whole) if whole.isdigit() else None
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


def hub_api() -> Any:
    """The client of `huggingface_hub`, at the endpoint that the person's environment sets.

    Raises:
        InputError: the endpoint is not reached by https.
    """
    from huggingface_hub import HfApi, constants

    _check_safe(constants.ENDPOINT, constants.ENDPOINT)
    return HfApi(endpoint=constants.ENDPOINT, library_name="kdc")


def _check_safe(url: str, endpoint: str) -> None:
    """Refuse an address to which tokens and files would not go over https, except for a hub on this very machine."""
    is_on_this_machine = urlsplit(url).hostname in _LOOPBACK and urlsplit(endpoint).hostname in _LOOPBACK
    if urlsplit(url).scheme != "https" and not is_on_this_machine:
        host = urlsplit(url).netloc.rpartition("@")[2]
        raise InputError("the hub must be reached by https", given=host, remedy="set HF_ENDPOINT to an https address")


@contextmanager
def asking_hub(shown: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises within the block into errors of kdc.

    Args:
        shown: the repository, as people may see it.

    Raises:
        InputError: no such repository or revision, or the library is in offline mode.
        KdcError: the hub refused, or did not answer.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    known = (OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError)
    try:
        with reaching(shown, _REMEDY, passing=known):
            yield
    except RevisionNotFoundError as error:
        remedy = "name a branch or tag it has"
        raise InputError("the repository has no such revision", given=shown, remedy=remedy) from error
    except RepositoryNotFoundError as error:
        raise InputError("the hub has no such repository, or does not show it", given=shown, remedy=_REMEDY) from error
    except OfflineModeIsEnabled as error:
        raise InputError("the hub is switched off", given="HF_HUB_OFFLINE", remedy="unset it") from error

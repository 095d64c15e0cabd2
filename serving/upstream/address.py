"""The upstream's address, which only the operator chooses."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from kdc.common.errors import InputError

_REMEDY = "--upstream https://HOST[:PORT][/PREFIX]"
Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def base_url(given: str) -> str:
    """The part before `/v1/...`: `https://api.example.com/v1/` is `https://api.example.com`."""
    try:
        parts = urlsplit(given)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"the upstream's address is wrong: {error}", given=given, remedy=_REMEDY) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not given.isascii() or not given.isprintable():
        raise InputError("the upstream's address is no http or https URL", given=given, remedy=_REMEDY)
    if parts.username is not None or parts.query or parts.fragment:
        what = "the upstream's address has a user, a query or a fragment"
        raise InputError(what, given=parts.hostname, remedy=f"{_REMEDY}; the key is in KDC_UPSTREAM_KEY")
    return f"{parts.scheme}://{parts.netloc}{re.sub('(/v1)?/*$', '', parts.path)}"


def networks(given: str | None) -> Networks:
    """Split networks such as `10.0.0.0/8,fd00::/8`."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in (given or "").split(",") if part.strip())
    except ValueError as error:
        remedy = "networks, separated by commas: KDC_UPSTREAM_NETWORKS=10.0.0.0/8"
        raise InputError(f"this is no network: {error}", given=given, remedy=remedy) from None


class PublicResolver(ThreadedResolver):
    """Resolves names only to public addresses and `allowed` networks, and `localhost` to this machine.

    Otherwise whoever controls the name could point it at this network. An IP address in the URL is not resolved: the
    operator wrote it.
    """

    def __init__(self, allowed: Networks) -> None:
        super().__init__()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        public = found if host == "localhost" else [each for each in found if self._is_allowed(each["host"])]
        if not public:
            raise OSError(None, f"{host} has only private addresses; see KDC_UPSTREAM_NETWORKS")
        return public

    def _is_allowed(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped.is_global or any(mapped in network for network in self._allowed)


def is_plain_text(url: str) -> bool:
    """Whether a key would cross a network unencrypted."""
    parts = urlsplit(url)
    try:
        is_here = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_here = parts.hostname == "localhost"
    return parts.scheme == "http" and not is_here

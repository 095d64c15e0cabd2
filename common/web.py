"""HTTP sessions for fsspec that refuse redirects from https to http, or from the internet to private addresses.

Redirects could reach this machine's ports, its network, or a cloud's metadata.
"""

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

_MOST_AT_ONCE = 64 << 20  # bytes of a read without a range
_REMEDY = "give the address it redirects to, if you trust it"


def is_inside(address: str) -> bool:
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


def leads_inside(server: str, target: str) -> bool:
    """Whether an internet server leads to a private target. Unresolved names (behind a proxy) are internet."""
    return _resolves_inside(target) and not _resolves_inside(server)


def _resolves_inside(name: str) -> bool:
    try:
        return any(
            is_inside(str(address[0])) for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
    except OSError:
        return False


async def session(*, server: str, **more: Any) -> "aiohttp.ClientSession":
    """After a connection to the internet, later ones (redirects, other DNS answers) must go there too. `server` keeps
    sessions apart."""
    import aiohttp
    import yarl

    inside: list[bool] = []  # of each connection

    def connected(to: Any) -> socket.socket:
        family, kind, protocol, _, address = to
        inside.append(is_inside(address[0]))
        if inside[-1] and not inside[0]:
            what = f"a public server redirects to {address[0]}, which is private; {_REMEDY}"
            raise OSError(errno.EACCES, what)
        return socket.socket(family, kind, protocol)

    async def redirected(_session: Any, _context: Any, sent: aiohttp.TraceRequestRedirectParams) -> None:
        if sent.url.scheme == "https" and yarl.URL(sent.response.headers.get("Location", "")).scheme == "http":
            raise OSError(f"a redirect goes from https to http; {_REMEDY}")

    class Bounded(aiohttp.ClientResponse):
        """Refuses more bytes than requested; fsspec reads all into memory."""

        async def read(self) -> bytes:
            start, _, end = self.request_info.headers.get("Range", "").removeprefix("bytes=").partition("-")
            most = int(end) - int(start) + 1 if start and end else _MOST_AT_ONCE
            whole = bytearray()
            if self._body is None:
                async for chunk in self.content.iter_any():
                    whole += chunk
                    if len(whole) > most:
                        self.close()
                        raise ValueError(f"the server sends more than the {most} bytes that were asked for")
                self._body = bytes(whole)
            return await super().read()

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(redirected)
    connector = aiohttp.TCPConnector(socket_factory=connected, loop=more.get("loop"))
    return aiohttp.ClientSession(connector=connector, trace_configs=[trace], response_class=Bounded, **more)

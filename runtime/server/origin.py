"""Whose pages may talk to a server: browsers send what any page asks for, to any address that their user can reach.

A page of another site names itself in Origin. A page whose name was made to lead to this machine (DNS rebinding) names itself
in Host. Programs that are no browsers send no Origin.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from ipaddress import ip_address

__all__ = ["check_origin"]

AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+?)\.?(:\d{1,5})?")


def check_origin(headers: Sequence[tuple[bytes, bytes]], names: Collection[str] | None) -> tuple[int, str] | None:
    """Status and sentence where a request comes by a foreign name or from a foreign page; None where it does not.

    Args:
        headers: names in lower case.
        names: of this server beside localhost and addresses, in lower case; None where it may have any.
    """
    hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return 400, "a request has one Host"
    host = hosts[0] if hosts else ""
    if host and names is not None and not _is_ours(_name(host), names):
        return 421, f"this server is not known as {host[:80]!r}; if it is, say so with --allow-host"
    for name, value in headers:
        if name == b"origin":
            origin = value.decode("latin-1").lower()
            page = origin.partition("://")[2]
            if not page or (page != host and _name(page) not in (names or ())):
                return (
                    403,
                    f"a page of {origin[:80]!r} may not use this server; if it is yours, name its host with --allow-host",
                )
    return None


def _name(authority: str) -> str | None:
    """The host of host:port; None for what is none."""
    found = AUTHORITY.fullmatch(authority)
    return found and found[1]


def _is_ours(name: str | None, names: Collection[str]) -> bool:
    """Addresses are nobody's names: a page that was loaded from one is the server's there."""
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True

"""Which addresses may be fetched: well-formed http(s) ones, and only machines that the whole internet can reach.

A URL list is written by strangers. Without the second rule a row such as http://169.254.169.254/ makes a cloud machine
read its own credentials into a dataset.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from pipeline.refusal import Refusal

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses that carry an IPv4 address in their last 32 bits
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Address:
    """An http(s) address in the parts that a request needs."""

    scheme: str
    host: str
    """ASCII (punycode), lower case."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def host_header(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


def parse_address(url: str) -> Address:
    """The parts of `url`; Refusal `malformed_url` for anything that is not an http(s) address with a host."""
    if any(character < " " or character == "\x7f" for character in url):
        raise Refusal("malformed_url", "a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise Refusal("malformed_url", str(error)) from None
    if parts.scheme not in _PORTS:
        raise Refusal("malformed_url", f"scheme '{parts.scheme}'" if parts.scheme else "no scheme")
    if not host:
        raise Refusal("malformed_url", "no host")
    # What is encoded already stays as it is; blanks and letters beyond ASCII are encoded as browsers do.
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._|")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?|[]")
    return Address(parts.scheme, host, port or _PORTS[parts.scheme], target)


def check_reachable_by_all(ip: str, allowed: Sequence[IPNetwork] = ()) -> None:
    """Refusal `private_address` for private, loopback, link-local, multicast and reserved addresses outside `allowed`.

    To be called with the number that is then connected to, not with a name: a name can change its mind in between.
    """
    number = _embedded(ipaddress.ip_address(ip.partition("%")[0]))
    if any(number in network for network in allowed if network.version == number.version):
        return
    if not number.is_global or number.is_multicast or number.is_reserved:
        raise Refusal("private_address", str(number))


def _embedded(number: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, where it does: the way around a check of the IPv6 form."""
    if isinstance(number, ipaddress.IPv4Address):
        return number
    if number in _NAT64:
        return ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
    teredo = number.teredo[1] if number.teredo else None
    return number.ipv4_mapped or number.sixtofour or teredo or number

"""Only well-formed http(s) addresses of public machines pass, in every disguise that an address can have."""

from __future__ import annotations

import ipaddress

import pytest

from pipeline.addresses import check_reachable_by_all, parse_address
from pipeline.refusal import Refusal, from_text


@pytest.mark.parametrize(
    ("url", "host_header", "target"),
    [
        ("http://a.example/x.jpg", "a.example", "/x.jpg"),
        ("http://a.example", "a.example", "/"),
        ("HTTPS://A.Example:443/?q=1&r=a%20b#part", "a.example", "/?q=1&r=a%20b"),
        ("http://a.example:8080/a b/ü?q=ü", "a.example:8080", "/a%20b/%C3%BC?q=%C3%BC"),
        ("http://bücher.example/", "xn--bcher-kva.example", "/"),
        ("http://user:word@a.example/", "a.example", "/"),
        ("http://[2606:4700::1]:81/", "[2606:4700::1]:81", "/"),
    ],
)
def test_an_address_in_parts(url: str, host_header: str, target: str) -> None:
    address = parse_address(url)
    assert (address.host_header, address.target) == (host_header, target)


@pytest.mark.parametrize(
    "url",
    [
        "", "/x.jpg", "a.example/x.jpg", "ftp://a.example/x", "javascript:alert(1)", "data:image/png;base64,AAAA",
        "file:///etc/passwd", "http:///x", "http://", "http://a.example:99999/", "http://a.example:x/", "http://[::1/",
        "http://a.example/\r\nHost: b", "http://a..example/", "http://" + "a" * 70 + ".example/",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_address(url)
    assert caught.value.reason == "malformed_url"


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::1",
    ],
)  # fmt: skip
def test_machines_that_not_everybody_can_reach(ip: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_reachable_by_all(ip)
    assert caught.value.reason == "private_address"


@pytest.mark.parametrize("ip", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_machines(ip: str) -> None:
    check_reachable_by_all(ip)


def test_a_job_may_allow_a_network() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("::1/128")]
    check_reachable_by_all("10.1.2.3", allowed)
    check_reachable_by_all("::1", allowed)
    with pytest.raises(Refusal):
        check_reachable_by_all("10.2.0.1", allowed)


def test_a_refusal_survives_being_text() -> None:
    back = from_text(str(Refusal("too_large_bytes", "9 bytes\tannounced")))
    assert (back.reason, back.detail) == ("too_large_bytes", "9 bytes\tannounced")
    assert from_text("[Errno 5] something new").reason == "failed"

"""Finding boards by multicast DNS, with python-zeroconf as the board that answers."""

from __future__ import annotations

import importlib.util
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.transport import mdns
from deploy.transport.mdns import Host, browse, parse
from tests.conftest import require_or_skip


@pytest.fixture
def announced() -> Iterator[None]:
    """Two boards, on the loopback interface alone."""
    require_or_skip(importlib.util.find_spec("zeroconf") is not None, "needs zeroconf: `pip install zeroconf`")
    from zeroconf import ServiceInfo, Zeroconf

    responder = Zeroconf(interfaces=["127.0.0.1"])
    for service, instance, host, port in (
        ("_ssh._tcp.local.", "desk no. 5", "pi5-desk", 2222),  # the dot belongs to the name
        ("_workstation._tcp.local.", "orin [48:b0:2d:11:22:33]", "orin", 9),
    ):
        info = ServiceInfo(
            service,
            f"{instance}.{service}",
            port=port,
            server=f"{host}.local.",
            addresses=[socket.inet_aton("10.9.8.7")],
        )
        responder.register_service(info, cooperating_responders=True)
    yield
    responder.close()


def test_machines_that_announce_ssh_or_themselves_are_found_with_name_address_and_port(announced: None) -> None:
    expected = [
        Host("orin.local", ("10.9.8.7",), None, "NVIDIA"),
        Host("pi5-desk.local", ("10.9.8.7",), 2222, None),
    ]

    assert expected == browse(0.9, ["lo"])


def test_where_nobody_answers_nothing_is_found() -> None:
    assert [] == browse(0.03, [])


def test_a_raspberry_pi_is_known_by_its_address_among_the_neighbours(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path_factory.mktemp("proc") / "arp"
    table.write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "10.9.8.7         0x1         0x2         d8:3a:dd:01:02:03     *        eth0\n"
    )
    monkeypatch.setattr(mdns, "_ARP", table)

    (found,) = mdns._hosts(
        {
            ("desk._ssh._tcp.local", 33, (22, "desk.local")),
            ("desk.local", 1, "10.9.8.7"),
            ("desk.local", 28, "fe80::1"),
            ("other._http._tcp.local", 33, (80, "printer.local")),
        }
    )

    assert Host("desk.local", ("10.9.8.7", "fe80::1"), 22, "Raspberry Pi") == found


def test_a_name_that_points_to_itself_is_refused() -> None:
    header = struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0)

    with pytest.raises(ValueError, match="points forward"):
        list(parse(header + b"\xc0\x0c" + struct.pack(">HHIH", 12, 1, 0, 0)))


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_understood_or_refused(data: bytes, response: bool) -> None:
    header = struct.pack(">6H", 0, 0x8400, 1, 3, 0, 0) if response else b""
    try:
        found = list(parse(header + data))
    except ValueError:
        return
    assert mdns._hosts(set(found)) is not None

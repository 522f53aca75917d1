"""
Which boards will do: by name, by tag, by what they must have.

What a board has is what boards.yaml says, and what the board said of itself when it was reached last.  A board that
nobody ever reached has only the former.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from deploy.boards import Board, Registry
from deploy.errors import NoSuchBoard, UsageError, nearest
from deploy.farm.seen import Seen

# What people call CPU features -> as /proc/cpuinfo names them.
ALIASES = {
    "dotprod": ("asimddp",),
    "fp16": ("asimdhp",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "neon": ("neon", "asimd"),
    "avx512": ("avx512f",),
}
FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_vpopcntdq", "avx_vnni"),
    *("neon", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "sve2", "vfpv4"),
)
KINDS = ("raspberry-pi", "jetson", "pynq", "generic")
ARCHES = ("aarch64", "armv7l", "x86_64")
TRANSPORTS = ("ssh", "serial", "local")
PLAIN = ("meter", "power", "real", "virtual")
_SIZED = re.compile(r"(memory|cpus)>=(\d+(?:\.\d+)?)([KMGT]i?B?)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def words(needs: Iterable[str]) -> tuple[str, ...]:
    """
    The needs, one by one: what was given may hold several with commas or blanks in between.

    Raises:
        UsageError: a word that is none, with the nearest one.
    """
    found = tuple(word for need in needs for word in re.split(r"[,\s]+", need) if word)
    known = (*ALIASES, *FEATURES, *KINDS, *ARCHES, *TRANSPORTS, *PLAIN)
    for word in found:
        sized = _SIZED.fullmatch(word)
        if word.lower() not in known and not sized:
            raise UsageError(
                f"nothing is known to need {word!r}{nearest(word, (*known, 'memory>=2G', 'cpus>=4'))}",
                f"CPU features ({', '.join(ALIASES)}, ...), kinds ({', '.join(KINDS)}), architectures, "
                f"transports, {', '.join(PLAIN)}, memory>=2G, cpus>=4",
            )
        if sized and sized[1].lower() == "cpus" and sized[3]:
            raise UsageError(f"{word!r} counts CPUs, and {sized[3]} is a unit of memory", "as in cpus>=4")
    return found


def missing(board: Board, needs: Iterable[str], seen: Seen | None = None) -> list[str]:
    """What a board lacks of `needs`, as a sentence each; empty if it will do."""
    said = seen.found if seen and seen.found else {}
    identity: dict[str, Any] = said.get("identity", {}).get("is", {})
    lacks = [_lack(board, word, identity, said) for word in words(needs)]
    return [lack for lack in lacks if lack]


def candidates(
    registry: Registry,
    names: Collection[str],
    tags: Collection[str],
    needs: Collection[str] = (),
    seen: Mapping[str, Seen] | None = None,
) -> list[Board]:
    """
    The boards that will do, in the order of names and file.

    A board in quarantine is left out unless it is asked for by name.

    Args:
        names: of boards; without any, and without `tags`, every board of the file that has the needs.
        seen: what was seen of them.

    Raises:
        UnknownBoard: a name or a tag that is not there.
        NoSuchBoard: none will do; says why for each.
    """
    wanted = words(needs)
    boards = registry.select(names, tags) if names or tags else list(registry)
    seen = seen or {}
    found, why = [], []
    for board in boards:
        known = seen.get(board.name)
        lacks = missing(board, wanted, known)
        if known and known.reason is not None and board.name not in names:
            lacks.append(f"is in quarantine: {known.reason}")
        if lacks:
            why.append(f"{board.name} {', '.join(lacks)}")
        else:
            found.append(board)
    if not found:
        raise NoSuchBoard(
            f"no board will do: {'; '.join(why)}",
            "`deploy boards check` looks at what they have; `deploy boards status` shows how they are",
        )
    return found


def _lack(board: Board, word: str, identity: Mapping[str, Any], said: Mapping[str, Any]) -> str | None:
    word = word.lower()
    if sized := _SIZED.fullmatch(word):
        return _too_small(board, sized, identity)
    if word in KINDS:
        return None if board.kind == word else f"is no {word}"
    if word in TRANSPORTS:
        return None if board.transport.kind == word else f"is not reached by {word}"
    if word in ("real", "virtual"):
        virtual = bool(board.virtual or identity.get("emulated"))
        return None if virtual == (word == "virtual") else f"is {'virtual' if virtual else 'real'}"
    if word == "power":
        return None if board.power or board.place else "has no `power:`"
    if word == "meter":
        rails = said.get("rails", {}).get("is")
        has = bool(board.host_meters or board.rails or rails)
        return None if has else "has no meter" if rails is not None else "has no meter that is known of"
    if word in ARCHES:
        arch = identity.get("machine") or (board.cpu and board.cpu.arch)
        return None if arch == word else f"is {arch}, not {word}" if arch else _unseen(word)
    features = {*(board.cpu.features if board.cpu else ()), *identity.get("cpu_features", ())}
    if features.intersection(ALIASES.get(word, (word,))):
        return None
    return f"has no {word}" if identity else _unseen(word)


def _too_small(board: Board, sized: re.Match[str], identity: Mapping[str, Any]) -> str | None:
    what, least = sized[1].lower(), float(sized[2]) * _UNITS[(sized[3] or "")[:1].lower()]
    if what == "cpus":
        has = identity.get("cpus") or (board.cpu and board.cpu.cores)
        return None if has and has >= least else f"has {has} CPUs" if has else _unseen("cpus")
    has = identity.get("memory_bytes")
    if not has:
        return _unseen("memory")
    # A board of 2 GB shows a little less, as its firmware keeps some.
    return None if has >= 0.9 * least else f"has {has / 2**30:.1f} GiB of memory"


def _unseen(word: str) -> str:
    return f"was never reached, and boards.yaml does not say whether it has {word}"

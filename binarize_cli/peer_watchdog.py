"""A connection from every rank to the first one that carries nothing: when it breaks, a rank has died.

Collectives notice a dead rank only at their timeout, many minutes later (NCCL); the kernel closes a dead
process's sockets at once, whatever it died of.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
from threading import Event, Thread
from typing import Any

GOODBYE, END = b".", b"!"  # "I leave, and so does everyone"; "a rank died: end without a word"
TOKEN_BYTES = 16
PATIENCE = 60.0  # seconds for the other ranks to connect, after they have met

_lines: dict[int, socket.socket] = {}  # of the first rank: to all others; of another: to the first
_alone = Event()  # all of them have said goodbye


def hold(rank: int, world: int, address: str, store: Any) -> None:
    """Connect, and watch from a thread. The first rank says in `store` how to reach it. Raises OSError."""
    if rank == 0:
        _accept_all(world, store)
    else:
        port, token = store.get("watchdog").split(b" ")
        line = socket.create_connection((address, int(port)), timeout=PATIENCE)
        line.settimeout(None)
        line.sendall(bytes.fromhex(token.decode()) + rank.to_bytes(4, "big"))
        _lines[0] = line
    Thread(target=_watch, args=(rank, world), daemon=True, name="watchdog").start()


def _accept_all(world: int, store: Any) -> None:
    token = secrets.token_bytes(TOKEN_BYTES)  # a stranger that knocks does not count as a rank
    with socket.create_server(("", 0), backlog=world) as server:
        server.settimeout(PATIENCE)
        store.set("watchdog", f"{server.getsockname()[1]} {token.hex()}")
        while len(_lines) < world - 1:
            line, _ = server.accept()
            line.settimeout(PATIENCE)
            greeting = line.recv(TOKEN_BYTES + 4, socket.MSG_WAITALL)
            if greeting[:TOKEN_BYTES] == token:
                line.settimeout(None)
                _lines[int.from_bytes(greeting[TOKEN_BYTES:], "big")] = line


def say_goodbye(rank: int) -> None:
    """Leave without alarming the others. The first rank goes last: it keeps what all ask each other."""
    _send(GOODBYE)
    if rank == 0:
        _alone.wait(PATIENCE)


def _send(word: bytes) -> None:
    for line in _lines.values():
        try:
            line.sendall(word)
        except OSError:  # it has gone before us
            continue


def _watch(rank: int, world: int) -> None:
    with selectors.DefaultSelector() as ready:
        for other, line in _lines.items():
            ready.register(line, selectors.EVENT_READ, other)
        while ready.get_map():
            for key, _ in ready.select():
                word = _read(_lines[key.data])
                if word == GOODBYE:
                    ready.unregister(key.fileobj)
                elif word == END:
                    os._exit(1)
                else:
                    _end(rank, world, key.data)
    _alone.set()


def _read(line: socket.socket) -> bytes:
    try:
        return line.recv(1)
    except OSError:
        return b""


def _end(rank: int, world: int, dead: int) -> None:
    """End this process; the lowest rank left says why."""
    if rank == min({0, 1} - {dead}):
        sys.stderr.write(
            f"error: rank {dead} of {world} has died or failed; all other ranks end too\n"
            "  Its own message, if it left one, is further up. Run the same command with --resume to "
            "continue from the last state.\n"
        )
        sys.stderr.flush()
    _send(END)
    os._exit(1)

"""A TCP connection between rank 0 and every other rank."""

import os
import secrets
import socket

import torch.distributed as dist

from ..errors import Error
from .launch import START_TIMEOUT, Launch

KEY = "msrnn connections"
TOKEN_BYTES, RANK_BYTES = 16, 4


def connect(launch: Launch, store: dist.Store) -> dict[int, socket.socket]:
    """Connect rank 0 with all others.

    Args:
        launch: of this run.
        store: a store that all of them share. Rank 0 writes its port there with a random token, which other programs that
            connect to the port do not know.

    Returns:
        By rank, the connections: of rank 0 to all others, or of this rank to rank 0.

    Raises:
        Error: rank 0 cannot be reached.
    """
    try:
        return _accept_all(launch, store) if launch.is_first else {0: _connect_to_first(launch, store)}
    except OSError as error:
        raise Error(f"rank {launch.rank} cannot connect to rank 0 at {os.environ['MASTER_ADDR']} ({error})") from None


def _accept_all(launch: Launch, store: dist.Store) -> dict[int, socket.socket]:
    host, token = os.environ["MASTER_ADDR"], secrets.token_bytes(TOKEN_BYTES)
    family, *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    found = dict[int, socket.socket]()
    with socket.create_server((host, 0), family=family, backlog=launch.size) as server:
        server.settimeout(START_TIMEOUT.total_seconds())
        store.set(KEY, f"{server.getsockname()[1]} {token.hex()}")
        while len(found) < launch.size - 1:
            peer, _ = server.accept()
            peer.settimeout(START_TIMEOUT.total_seconds())
            hello = peer.recv(TOKEN_BYTES + RANK_BYTES, socket.MSG_WAITALL)
            if hello[:TOKEN_BYTES] != token:
                peer.close()
                continue
            found[int.from_bytes(hello[TOKEN_BYTES:], "big")] = _keep_alive(peer)
    return found


def _connect_to_first(launch: Launch, store: dist.Store) -> socket.socket:
    port, token = store.get(KEY).decode().split()
    peer = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), START_TIMEOUT.total_seconds())
    peer.sendall(bytes.fromhex(token) + launch.rank.to_bytes(RANK_BYTES, "big"))
    return _keep_alive(peer)


def _keep_alive(peer: socket.socket) -> socket.socket:
    """Let the system close the connection within 8 s if the other machine has lost power or network."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 2}.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer

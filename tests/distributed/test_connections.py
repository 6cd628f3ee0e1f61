"""The connections between rank 0 and the other ranks."""

import socket
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from msrnn.distributed.connections import KEY, connect
from msrnn.distributed.launch import Launch


def test_another_program_that_connects_is_no_rank(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(connect, Launch(0, 2), store)
        port, _ = store.get(KEY).split()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as other:
            other.sendall(bytes(20))
            assert other.recv(1) == b""
        of_second = connect(Launch(1, 2), store)
        of_first = first.result()
    assert (of_first.keys(), of_second.keys()) == ({1}, {0})
    with of_first[1] as here, of_second[0] as there:
        there.sendall(b"a")
        assert here.recv(9) == b"a"
        there.close()
        assert here.recv(9) == b""

"""Refuse every connection beyond this machine.

conftest.py puts this folder on PYTHONPATH, so that each Python started by a test, lesson kernels among them, loads it.
"""

import socket
import sys


def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # a path is a socket on this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "::1", socket.gethostname()) and not host.startswith("127."):
        raise OSError(f"tests run offline: no connection to {host}")


sys.addaudithook(refuse)

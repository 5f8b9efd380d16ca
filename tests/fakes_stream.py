"""A stream that a server on this machine sends once."""

from __future__ import annotations

import socket
import threading


def served_once(content: bytes) -> str:
    """Address of a server that sends this content to the first client, and nothing to later ones."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as client:
            client.sendall(content)

    threading.Thread(target=serve, daemon=True).start()
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"

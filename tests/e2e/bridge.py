"""A network that a test can cut."""

import contextlib
import socket
import threading


class Bridge:
    """A way to a server that can be cut: carries bytes between a port of its own and the server's."""

    def __init__(self, port: int):
        self._port, self._ends = port, []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._own = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._own}/"

    def __enter__(self):
        self.build()
        return self

    def __exit__(self, *_):
        self.break_down()

    def build(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._own))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def break_down(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):  # closed by the other side already
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return  # broken down
            there = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [here, there]
            for ends in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # broken down
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

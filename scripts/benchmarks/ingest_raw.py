"""What the disk and the loopback allow: files over TCP, each durable before a byte answers for it. No DICOM.

    ingest_raw.py receive PORT FOLDER           a thread per connection: fdatasync, rename and fsync of the folder
    ingest_raw.py send PORT REPEAT FILE...      sendfile, REPEAT times, waiting for each answer

On the wire each file is eight bytes of length (big-endian) and its content. A program of its own, of the standard
library alone, so that it starts as quickly as a sender in C.
"""

import os
import socket
import sys
import threading
from pathlib import Path

BUFFER = 1 << 18
LOOPBACK = "127.0.0.1"
DONE = b"\1"


def receive(port: int, folder: str) -> None:
    os.chdir(folder)
    listener = socket.create_server((LOOPBACK, port))
    for number in range(1 << 30):
        connection, _ = listener.accept()
        threading.Thread(target=_keep_all, args=(connection, number), daemon=True).start()


def _keep_all(connection: socket.socket, association: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(BUFFER))
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    number = 0
    while header := connection.recv(8, socket.MSG_WAITALL):
        name = f"{association}-{number}"
        _keep(connection, buffer, f"{name}.part", int.from_bytes(header, "big"))
        Path(f"{name}.part").rename(f"{name}.dcm")
        os.fsync(directory)
        connection.sendall(DONE)
        number += 1
    os.close(directory)


def _keep(connection: socket.socket, buffer: memoryview, name: str, left: int) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    while left:
        count = connection.recv_into(buffer, min(left, BUFFER))
        if not count:
            raise ConnectionError("the sender ended in mid file")
        piece = buffer[:count]
        while piece:
            piece = piece[os.write(file, piece) :]
        left -= count
    os.fdatasync(file)
    os.close(file)


def send(port: int, repeat: int, files: list[str]) -> None:
    with socket.create_connection((LOOPBACK, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name in files * repeat:
            with Path(name).open("rb") as file:
                connection.sendall(os.fstat(file.fileno()).st_size.to_bytes(8, "big"))
                connection.sendfile(file)
            if connection.recv(1) != DONE:
                raise ConnectionError("not answered")


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]), sys.argv[3])
    else:
        send(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

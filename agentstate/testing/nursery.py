"""The process that forks warm workers: ``python -m agentstate.testing.nursery FD``.

Starting Python and importing a backend takes a good part of a second; a fork of a process
that has done both takes milliseconds, which is what makes a thousand killed workers
affordable. It stays single-threaded and opens no storage, so a fork inherits nothing.
It ends when the other side of its control socket does.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from agentstate.testing.worker import Channel, run_job

MAX_REQUEST = 64 * 1024


def serve(control: socket.socket) -> None:
    """Fork one worker per request until the control socket closes.

    A request is a JSON object with the worker's socket attached; the reply is the worker's
    process id on a line.
    """
    # The kernel buries dead workers: nobody here waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST, 1)
        if not message:
            return
        request: dict[str, Any] = json.loads(message)
        for module in request["preload"]:
            importlib.import_module(module)
        child = os.fork()
        if child == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run_job(Channel(socket.socket(fileno=descriptors[0])), request)
            os._exit(0)
        os.close(descriptors[0])
        control.sendall(b"%d\n" % child)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

"""An HTTP process without HTTP: watches the runtime and writes down what it is told.

``fake_gateway.py LOG``: the file gets a line ``pid N`` at the start and a line for every state.
``fake_gateway.py --fail`` cannot start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from radixrt.errors import TransportError
from radixrt.protocol import Goodbye, Hello, State
from radixrt.transport import ZmqTransport

ANY_PORT = 45678


def main(log: Path) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    settings = json.loads(sys.stdin.readline())
    with log.open("a") as file:
        print("pid", os.getpid(), file=file, flush=True)
        transport = ZmqTransport(settings["endpoint"], timeout_s=30)
        transport.send([Hello(client="gateway", watch=True)])
        watcher = threading.Thread(target=watch, args=(transport, file), daemon=True)
        watcher.start()
        url = f"http://127.0.0.1:{settings['port'] or ANY_PORT}"
        print(json.dumps({"url": url}), flush=True)
        threading.Thread(target=end_with_parent, daemon=True).start()
        over.wait()
        watcher.join(5.0)  # the goodbye came before


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def watch(transport: ZmqTransport, file) -> None:  # type: ignore[no-untyped-def]
    try:
        while True:
            for message in transport.receive(1.0):
                if isinstance(message, State):
                    print(message.phase, file=file, flush=True)
                if isinstance(message, Goodbye):
                    print("goodbye", file=file, flush=True)
                    return
    except TransportError:
        pass


if __name__ == "__main__":
    if sys.argv[1] == "--fail":
        sys.exit("no such address")
    main(Path(sys.argv[1]))

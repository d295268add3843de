"""Reading another worker's memory ends, also where the threads that do it were ended before."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from laban.actors.engine.landing import ReadLanding
from laban.actors.transfers import Granted


def test_a_landing_ends_after_its_threads() -> None:
    threads, may_end, under_way = ThreadPoolExecutor(1), threading.Event(), threading.Event()

    def read(pieces: object) -> None:
        under_way.set()
        may_end.wait()

    port: Any = SimpleNamespace()
    reader: Any = SimpleNamespace(read=read)
    granted = Granted(1, 96, 32, 10.0, None, ((0, 96),))
    landing = ReadLanding(port, granted, reader, lambda begin, end: [(begin, end - begin)], 8, threads, 0.0, time.time)
    for begin in (0, 32, 64):
        landing.ask(begin, begin + 32)
    under_way.wait()
    threads.shutdown(wait=False, cancel_futures=True)
    finishing = threading.Thread(target=landing.finish, daemon=True)
    finishing.start()
    finishing.join(0.05)
    assert finishing.is_alive()  # one still writes
    may_end.set()
    finishing.join(5.0)
    assert not finishing.is_alive()

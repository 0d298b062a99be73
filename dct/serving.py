"""A model that serves many at once: requests wait in a queue, and a thread takes them in batches of any vectors.

Only that thread runs the model. A batch is made to its end before the next begins, while rows that are done, late or
no longer wanted end by themselves. Knows no protocol.
"""

import threading
import time
from collections import deque

from dct.answering import Ask, Reply, answer
from dct.batching import release_memory
from dct.errors import DctError
from dct.model import LanguageModel
from dct.perturbation import Site

GATHERED = 0.005
"""Seconds in which requests that come at the same time find into one batch."""


class BusyError(DctError):
    """Too many requests wait already."""


class Desk:
    """Where requests are left, and by which they are answered until it is closed.

    Args:
        lm: the model.
        layer: vectors are added to hidden_states[layer], or are changes of a band.
        batch: requests that are answered together.
        waiting: requests that may wait beside them.
        seconds: in which a request must be answered, its wait included.
    """

    def __init__(
        self, lm: LanguageModel, layer: Site, *, batch: int = 32, waiting: int = 256, seconds: float = 600.0
    ) -> None:
        self.lm, self.layer, self.batch, self.waiting, self.seconds = lm, layer, batch, waiting, seconds
        self._left: deque[Reply] = deque()
        self._running: list[Reply] = []
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="dct-desk", daemon=True)
        self._worker.start()

    def put(self, ask: Ask) -> Reply:
        """Leaves a request; its reply grows from now on.

        Raises:
            BusyError: too many wait.
            DctError: the desk is closed.
        """
        with self._changed:
            if self._closed:
                raise DctError("the server is going down")
            if len(self._left) >= self.waiting:
                self._left = deque(reply for reply in self._left if not reply.over)
            if len(self._left) >= self.waiting:
                raise BusyError(f"{self.waiting} requests wait already: try again later")
            reply = Reply(ask, time.monotonic() + self.seconds)
            self._left.append(reply)
            self._changed.notify_all()
            return reply

    def close(self) -> None:
        """Cancels what waits and what runs, and returns once the model rests."""
        with self._changed:
            self._closed = True
            for reply in (*self._left, *self._running):
                reply.fail(DctError("the server is going down"))
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._closed)
            time.sleep(GATHERED)
            with self._changed:
                if self._closed:
                    return
                while self._left and len(self._running) < self.batch:
                    reply = self._left.popleft()
                    if not reply.over:
                        self._running.append(reply)
            self._answer(self._running)
            with self._changed:
                self._running = []

    def _answer(self, replies: list[Reply]) -> None:
        """Answers a batch; one that fails is tried again in halves, so that nobody fails for another."""
        if not replies:
            return
        failed: Exception | None = None
        try:
            answer(self.lm, self.layer, replies)
        except Exception as error:  # the model's own code may raise anything, and the others are still to be answered
            failed = error.with_traceback(None)
        if failed is None:
            return
        release_memory(self.lm.device)
        left = [reply for reply in replies if not reply.over]
        if len(left) == 1 and len(replies) == 1:
            left[0].fail(failed)
        elif left:
            half = (len(left) + 1) // 2
            self._answer(left[:half])
            self._answer(left[half:])

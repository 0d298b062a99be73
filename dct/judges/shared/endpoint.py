"""An OpenAI-compatible endpoint, asked by the standard library, and a folder that keeps answers by what was asked.

Knows nothing of labels: questions in, answers out.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dct.errors import DctError, UsageError
from dct.writing import write_whole

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers of a server that may be another one in a moment."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before a request is made again: the first wait, which doubles each time, and the longest."""

MOST_BYTES = 2**20
"""Of an answer."""


class Endpoint:
    """A server that completes chats.

    Args:
        own: `url`, `served`, `key`, `max_new_tokens`, `timeout`, `retries` and `parallel`, as of the judge `llm`.

    Raises:
        UsageError: the address is none of http, or the variable of the key is not set.
    """

    def __init__(self, own: Mapping[str, Any]) -> None:
        url = own["url"].rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"`url` must begin with http:// or https://, got {url!r}", argument="url")
        self.url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        self.own = own
        self.headers = {"Content-Type": "application/json"}
        if own["key"]:
            if not os.environ.get(own["key"]):
                raise UsageError(f"`key`: the environment variable {own['key']} is not set", argument="key")
            self.headers["Authorization"] = f"Bearer {os.environ[own['key']]}"
        self.opener = urllib.request.build_opener(_Stay)

    def answers(self, questions: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each question with its answer, in order; the first that fails ends it.

        Raises:
            DctError: the server cannot be reached, refuses, or answers something else than a chat.
        """
        pool = ThreadPoolExecutor(self.own["parallel"])
        try:
            yield from zip(questions, pool.map(self.answer, questions), strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def answer(self, question: str) -> str:
        """The answer to a question, asked again where a failure may pass."""
        body = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.own["max_new_tokens"],
            **({"model": self.own["served"]} if self.own["served"] else {}),
        }
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers, method="POST")
        wait = FIRST_WAIT
        for left in range(self.own["retries"], -1, -1):
            try:
                with self.opener.open(request, timeout=self.own["timeout"]) as response:
                    return _said(response.read(MOST_BYTES + 1), self.url)
            except urllib.error.HTTPError as error:
                with error:
                    why = f"{error.code} {error.reason}: {error.read(200).decode(errors='replace').strip()}"
                asked_to_wait = error.headers.get("Retry-After", "")
                passing = error.code in PASSING
            except (OSError, EOFError) as error:  # no connection, cut off, or too slow
                why, asked_to_wait, passing = str(getattr(error, "reason", "") or error), "", True
            except Exception as error:  # http.client has failures of its own
                if isinstance(error, DctError):
                    raise
                why, asked_to_wait, passing = f"{type(error).__name__}: {error}", "", True
            if not (passing and left):
                raise DctError(f"the judge at {self.url} does not answer ({why})")
            time.sleep(min(float(asked_to_wait) if asked_to_wait.isdecimal() else wait, LONGEST_WAIT))
            wait *= 2
        raise AssertionError("the last attempt returns or raises")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would carry the key to another server."""

    def redirect_request(self, *given: Any, **more: Any) -> None:
        """Nowhere."""


def _said(content: bytes, url: str) -> str:
    """The text of a chat's first choice."""
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        said = json.loads(content)["choices"][0]["message"]["content"]
        if not isinstance(said, str):
            raise TypeError("its content is no text")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DctError(f"the judge at {url} answers something else than a chat completion ({error})") from error
    return said


class Cache:
    """Answers in a folder, one file each, by the SHA-256 of all that they depend on.

    Args:
        folder: where; empty for `dct/judge` in the user's cache folder, `none` for nowhere.
        about: what an answer depends on beside the question.
    """

    def __init__(self, folder: str, about: Mapping[str, Any] | None = None) -> None:
        self.folder, self.about = folder, about

    def of(self, about: Mapping[str, Any]) -> "Cache":
        """The same folder, for answers that depend on this too."""
        return Cache(self.folder, about)

    def get(self, question: str) -> str | None:
        """The answer that is kept; None where there is none, or none that can be read."""
        path = self._path(question)
        if path is None:
            return None
        try:
            answer = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, str) else None

    def put(self, question: str, answer: str) -> None:
        """Keeps an answer.

        Raises:
            DctError: it cannot be written.
        """
        path = self._path(question)
        if path is not None:
            write_whole(path, json.dumps(answer).encode(), "choose another `cache`, or none")

    def _path(self, question: str) -> Path | None:
        if self.folder == "none":
            return None
        at_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dct" / "judge"
        key = hashlib.sha256(json.dumps([self.about, question], sort_keys=True).encode()).hexdigest()
        return Path(self.folder or at_home) / key[:2] / f"{key}.json"

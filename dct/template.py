"""A chat template is somebody else's program: it is tried in a process of its own, which is ended when it takes too
long or makes too much text.

jinja cannot be interrupted from inside: a product of large numbers or a filter runs in C until it is done. Only what
came through the trial is rendered by transformers itself. Knows jinja and processes; knows nothing of models. Run as a
program, this file is the process that tries.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

from dct.errors import DctError

SECONDS = 10.0
"""A template that takes longer for one prompt is stopped."""

MOST_TEXT = 1_000_000
"""Characters that a template may make of a prompt, or `MOST_GROWTH` times what it is given, whatever is more."""

MOST_GROWTH = 100

MOST_MEMORY = 2**30
"""Bytes that the process in which a template is tried may ask for."""

START_SECONDS = 60.0
"""Time that the process may take to start; the machine may be busy."""


class StoppedTemplateError(DctError):
    """A template ran into a bound."""


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        changing: whether the template read the clock or drew at random, so that it may say another thing next time.
    """

    changing: bool = False


def try_template(template: str, context: dict[str, Any], what: str) -> Trial:
    """Renders a template in another process, within bounds. Errors of the template itself are left to whoever renders
    it in earnest.

    Args:
        template: its source.
        context: what it is rendered with; JSON types.
        what: how messages call it.

    Raises:
        StoppedTemplateError: it ran into a bound.
    """
    most = max(MOST_TEXT, MOST_GROWTH * len(json.dumps(context.get("messages"))))
    reply = _process.ask({"template": template, "context": context, "seconds": SECONDS, "most": most}, SECONDS)
    if reply is None:  # no process can be started here: the template is rendered without a trial
        return Trial(changing=any(word in template for word in ("strftime_now", "|random", "| random", "lipsum")))
    if reply.get("stopped") == "time":
        raise StoppedTemplateError(f"{what} fails: it is not done after {SECONDS:g} seconds")
    if reply.get("stopped") == "size":
        raise StoppedTemplateError(
            f"{what} fails: it makes more than {most:,} characters of a prompt, or needs as much"
        )
    if reply.get("stopped"):
        raise StoppedTemplateError(f"{what} fails: it ended the process that tried it")
    return Trial(changing=bool(reply.get("changing")))


class _Process:
    """The process that tries templates; started with the first, and again after one that had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer to a request; None where no process can be started."""
        with self.lock:
            if not self._started():
                return None
            line = json.dumps(request).encode() + b"\n"
            answer, late = self._exchange(line, seconds)
            if answer:
                return dict(json.loads(answer))
            self.end()
            return {"stopped": "time" if late else "crash"}

    def end(self) -> None:
        """Ends the process, if this one started it."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def _started(self) -> bool:
        # A forked child has the pipes of its parent, who is talking through them.
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            return True
        self.end()
        if not sys.executable or getattr(sys, "frozen", False):
            return False
        program = f"import sys; sys.path[:] = {sys.path!r}; from dct.template import serve; serve()"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return False
        self.owner = os.getpid()
        ready, _ = self._exchange(b"", START_SECONDS)
        if not ready:
            self.end()
        return bool(ready)

    def _exchange(self, line: bytes, seconds: float) -> tuple[bytes, bool]:
        """What the process answers, nothing where it ends instead; and whether it was ended for taking too long."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            """Ends a process that takes too long."""
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline(), late.is_set()
        except OSError:
            return b"", late.is_set()
        finally:
            timer.cancel()


_process = _Process()
atexit.register(_process.end)


# --- the other process ------------------------------------------------------------------------------------------------


def serve() -> None:
    """Tries templates that come line by line on stdin, and answers each with a line on stdout, until stdin ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that asks
    _limit_memory()
    environments: dict[str, Any] = {}
    out = sys.stdout
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends this process even in the middle of a product, and if nobody waits
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
        try:
            reply = _tried(environments, request)
        except MemoryError:
            reply = {"stopped": "size"}
        except Exception as error:
            reply = {"error": type(error).__name__}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        out.write(json.dumps(reply) + "\n")
        out.flush()


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    except (ImportError, ValueError, OSError):
        return  # systems without such limits have the one on time


def _tried(compiled: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Renders piece by piece, so that endless output is noticed early."""
    source = request["template"]
    if source not in compiled:
        compiled[source] = _Environment().compile(source)
    environment, template = compiled[source]
    environment.changing = False
    size = 0
    for piece in template.generate(**request["context"]):
        size += len(piece)
        if size > request["most"]:
            return {"stopped": "size"}
    return {"changing": environment.changing}


class _Environment:
    """What chat templates may call, as transformers' documentation of them has it."""

    def __init__(self) -> None:
        self.changing = False

    def compile(self, source: str) -> tuple["_Environment", Any]:
        """A template, with this environment that notices what it reads."""
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def fail(message: str) -> None:
            """What templates call to refuse a conversation."""
            raise jinja2.TemplateError(message)

        def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
            """Text as JSON has it, without jinja's escapes for HTML."""
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), jinja2.ext.loopcontrols]
        )
        draw: Any = jinja.filters["random"]
        words: Any = jinja.globals["lipsum"]

        @jinja2.pass_context
        def random(context: Any, values: Any) -> Any:
            """jinja's own filter; what it gives is another thing each time."""
            self.changing = True
            return draw(context, values)

        def lipsum(*args: Any, **kwargs: Any) -> Any:
            """jinja's own; what it gives is another thing each time."""
            self.changing = True
            return words(*args, **kwargs)

        jinja.filters |= {"tojson": as_json, "random": random}
        jinja.globals |= {"raise_exception": fail, "strftime_now": self._now, "lipsum": lipsum}
        return self, jinja.from_string(source)

    def _now(self, form: str) -> str:
        from datetime import datetime

        self.changing = True
        return datetime.now().strftime(form)


def _generation_tag() -> type:
    """`{% generation %}`, which marks what the assistant says and changes nothing of it."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja's own way)

        def parse(self, parser: Parser) -> nodes.Node:
            """What stands between the tags, as it is."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation

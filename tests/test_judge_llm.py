"""A language model as judge: behind a small server of the test's own, and a local one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dct import DctError, UsageError
from dct.judges.shared import endpoint
from dct.judging import Reply, judge

REPLIES = [
    Reply("Bake bread?", "Sure, mix flour and water.", "No."),
    Reply("Bake bread?", "I will not."),
    Reply("Bake bread?", "xq zv"),
]


class Server(ThreadingHTTPServer):
    """Answers each request by the next of its answers: a status, a body, and headers; the last one from then on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, str, dict[str, str]]] = []
        self.asked: list[tuple[str, dict, dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((self.path, dict(self.headers), body))
        status, text, headers = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        """Nothing."""


def said(text: str) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}), {}


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Waits between attempts, none of which is waited for."""
    found: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", found.append)
    return found


def test_verdicts_are_read_from_what_the_model_says(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "word")
    server.answers = [said("complied coherent"), said("Refused, coherent."), said("other\nincoherent")]
    found = judge("llm", url=server.url, served="reader", key="SOME_KEY", parallel=1).verdicts(REPLIES)
    assert [(v.label, v.coherent) for v in found] == [("complied", True), ("refused", True), ("other", False)]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer word"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("reader", 0, 16)
    assert "Sure, mix flour and water." in body["messages"][0]["content"]


def test_answers_are_kept_by_what_was_asked(server):
    server.answers = [said("complied coherent")]
    for _ in range(2):
        judge("llm", url=server.url).verdicts([*REPLIES, REPLIES[0]])
    assert len(server.asked) == 3
    judge("llm", url=server.url, served="another").verdicts(REPLIES[:1])
    assert len(server.asked) == 4
    judge("llm", url=server.url, cache="none").verdicts(REPLIES[:1])
    assert len(server.asked) == 5


def test_what_was_answered_before_a_failure_is_kept(server, waits):
    server.answers = [said("complied coherent"), (400, "no", {})]
    with pytest.raises(DctError, match=r"does not answer \(400"):
        judge("llm", url=server.url, parallel=1).verdicts(REPLIES)
    server.answers, asked = [said("refused coherent")], len(server.asked)
    found = judge("llm", url=server.url, parallel=1).verdicts(REPLIES)
    assert [v.label for v in found] == ["complied", "refused", "refused"]
    assert len(server.asked) == asked + 2
    assert waits == []


def test_a_failure_that_may_pass_is_tried_again(server, waits):
    server.answers = [(500, "", {}), (429, "", {"Retry-After": "7"}), (503, "", {}), said("complied coherent")]
    assert judge("llm", url=server.url).verdicts(REPLIES[:1])[0].label == "complied"
    assert waits == [1.0, 7.0, 4.0]


def test_and_not_for_ever(server, waits):
    server.answers = [(503, "busy", {})]
    with pytest.raises(DctError, match=r"the judge at http://127.0.0.1:\d+/v1/chat/completions does not answer \(503"):
        judge("llm", url=server.url, retries=2).verdicts(REPLIES[:1])
    assert waits == [1.0, 2.0]
    assert len(server.asked) == 3


def test_nobody_there_and_too_slow(server, waits):
    server.answers = [said("complied coherent")]
    with pytest.raises(DctError, match="does not answer"):
        judge("llm", url="http://127.0.0.1:1/v1", retries=1).verdicts(REPLIES[:1])
    assert waits == [1.0]
    held = threading.Event()
    server.RequestHandlerClass = type("Slow", (Handler,), {"do_POST": lambda self: held.wait(5)})
    with pytest.raises(DctError, match=r"timed out"):
        judge("llm", url=server.url, retries=0, timeout=0.2).verdicts(REPLIES[:1])
    held.set()


def test_a_redirection_is_not_followed(server, waits, monkeypatch):
    """It would take the key along."""
    monkeypatch.setenv("SOME_KEY", "word")
    server.answers = [(302, "", {"Location": server.url + "/elsewhere"})]
    with pytest.raises(DctError, match=r"does not answer \(302"):
        judge("llm", url=server.url, key="SOME_KEY").verdicts(REPLIES[:1])
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}'])
def test_an_answer_that_is_no_chat(server, body):
    server.answers = [(200, body, {})]
    with pytest.raises(DctError, match="answers something else than a chat completion"):
        judge("llm", url=server.url).verdicts(REPLIES[:1])


def test_a_judge_that_mostly_says_nothing_is_none(server):
    server.answers = [said("complied coherent"), said("complied coherent"), said("hm")]
    found = judge("llm", url=server.url, parallel=1).verdicts(REPLIES)
    assert (found[2].label, found[2].why) == ("other", "no label in 'hm'")
    server.answers = [said("hm")]
    with pytest.raises(DctError, match=r"3 of 3 answers of the judge hold no label \(no label in 'hm'\)"):
        judge("llm", url=server.url, cache="none").verdicts(REPLIES)


def test_the_template_can_be_replaced_and_texts_are_cut(server, tmp_path):
    server.answers = [said("complied")]
    file = tmp_path / "mine.txt"
    file.write_text("{prompt}|{completion}|{unsteered}")
    reader = judge("llm", url=server.url, template=str(file), characters=4)
    assert reader.question(Reply("{completion}", "12345678", None)) == "{com […]|1234 […]|(not […]"
    assert reader.question(Reply("{x}", "{}", "{y}")) == "{x}|{}|{y}"
    file.write_text("{prompt}")
    with pytest.raises(UsageError, match=r"`template` needs \{completion\} in it"):
        judge("llm", url=server.url, template=str(file))


def test_a_local_model_is_asked_in_its_own_template(make_lm, tmp_path, monkeypatch):
    lm, asked = make_lm("llama"), []

    def complete(model, rows, max_new_tokens, batch):
        asked.extend(model.tokenizer.decode(row) for row in rows)
        return ["refused coherent"] * len(rows)

    monkeypatch.setattr("dct.generation.complete", complete)
    file = tmp_path / "mine.txt"
    file.write_text("{prompt}: {completion}?")
    reader = judge("llm", lm, template=str(file), cache=str(tmp_path / "kept"))
    assert [v.label for v in reader.verdicts(REPLIES[:2])] == ["refused", "refused"]
    assert asked == [
        "<s><user>Bake bread?: Sure, mix flour and water.?<assistant>",
        "<s><user>Bake bread?: I will not.?<assistant>",
    ]
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 2

"""`dct serve`: every reply is the one that `complete` makes alone, whoever else asks; and who is refused."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, WIDTH
from hypothesis import given
from hypothesis import strategies as st

import dct
from dct import DctError, httphandler
from dct.answering import Ask, settled
from dct.conversation import conversation
from dct.generation import complete
from dct.httpserver import Server
from dct.mixture import Mixtures, UnknownModelError
from dct.protocol import Reader
from dct.serving import BusyError, Desk

LAYER, R = 2, 1.0
CHAT, RAW = "/v1/chat/completions", "/v1/completions"


def factors(m: int = 6) -> dct.Factors:
    V = torch.nn.functional.normalize(torch.randn(m, WIDTH, generator=torch.Generator().manual_seed(3)), dim=1)
    return dct.Factors(V, V.flip(0), torch.ones(m), torch.zeros(0, 3), R, {"source": LAYER, "signed": True})


RANKED = [{"vector": "4", "scale": 1.5 * R}, {"vector": "-1", "scale": None}]
MIXTURES = Mixtures("tiny", factors(), RANKED)


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    """A model that says what can be printed: its other tokens have no logit."""
    lm = make_lm("llama")
    with torch.no_grad():
        for k, row in enumerate(lm.model.lm_head.weight):
            if not lm.decode([k]).strip().isprintable() or "\ufffd" in lm.decode([k]):
                row.zero_()
    return lm


@pytest.fixture
def serve(lm):
    """Starts servers; they are gone at the end of the test."""
    made = []

    def start(key: str | None = None, most: int = 64, **options) -> Server:
        desk = Desk(lm, LAYER, **options)
        server = Server(Reader(lm, MIXTURES, most), desk, "127.0.0.1", 0, key=key)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.desk.close()
        server.shutdown()
        server.server_close()


def post(server: Server, body: object, path: str = CHAT, **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def asked(model: str = "model", prompt: str = PROMPTS[0], **more: object) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 12, **more}


def said(server: Server, body: dict, path: str = CHAT) -> str:
    status, _, data = post(server, body, path)
    assert status == 200, data
    [choice] = json.loads(data)["choices"]
    return choice["message"]["content"] if path == CHAT else choice["text"]


def alone(lm: dct.LanguageModel, theta: torch.Tensor | None, prompt: str = PROMPTS[0], new: int = 12) -> str:
    """What the model says by itself."""
    vectors = None if theta is None else theta[None]
    return complete(lm, lm.encode([prompt]), vectors, LAYER, max_new_tokens=new)[0]


def events(data: bytes) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(server: Server, body: object, status: int, param: str | None, says: str, path: str = CHAT, **headers):
    got, told, data = post(server, body, path, **headers)
    error = json.loads(data)["error"]
    assert (got, error["param"]) == (status, param), error
    assert says in error["message"]
    assert not [name for name in told if name.lower().startswith("access-control")]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("tiny@3:1.5", {3: 1.5}),
        ("model@3", {3: 1.0}),
        ("tiny@4", {4: 1.5}),  # at the scale that the ranking found
        ("tiny@rank1", {4: 1.5}),
        ("tiny@rank1:1", {4: 1.0}),
        ("tiny@rank2", {1: -1.0}),
        ("tiny@-5:2", {5: -2.0}),
        ("tiny@3:1+5:0.5", {3: 1.0, 5: 0.5}),
        ("tiny@3:-1+3:1", {3: 0.0}),
    ],
)
def test_a_name_says_what_is_added(name, weights):
    wanted = sum(c * R * MIXTURES.factors.V[k] for k, c in weights.items())
    torch.testing.assert_close(MIXTURES.vector(name), wanted)


def test_the_model_alone_has_two_names():
    assert MIXTURES.vector("tiny") is None
    assert MIXTURES.vector("model") is None
    assert MIXTURES.names(1) == ["tiny", "tiny@4"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt-4", "this is tiny"),
        ("tiny@", "names no vector"),
        ("tiny@6", "out of range"),
        ("tiny@rank3", "ranking holds 1 to 2"),
        ("tiny@rank0", "ranking holds 1 to 2"),
        ("tiny@1:nan", "names no vector"),
        ("tiny@1:1e5", "names no vector"),
        ("tiny@1:1000.5", "beyond all use"),
        ("tiny@1+", "names no vector"),
        ("tiny@٣", "names no vector"),
        ("tiny@" + "+".join("1" * 17), "16 at most"),
    ],
)
def test_wrong_names_are_told_the_right_ones(name, says):
    with pytest.raises(UnknownModelError, match=says):
        MIXTURES.vector(name)


@given(st.text(max_size=30) | st.text("@+:.-0123456789rank", max_size=20).map("tiny@".__add__))
def test_any_name_is_a_finite_vector_or_refused(name):
    try:
        found = MIXTURES.vector(name)
    except UnknownModelError:
        return
    assert found is None or (found.shape == (WIDTH,) and bool(found.isfinite().all()))


# --- replies ----------------------------------------------------------------------------------------------------------


def test_replies_of_many_at_once_are_those_of_each_alone(lm, serve):
    """200 requests of two vectors, one mixture and none, with four prompts and two lengths, all at the same time."""
    names = ["model", "tiny@3:1.5", "tiny@rank1", "tiny@3:1+5:0.5"]
    every = [(name, prompt, new) for name in names for prompt in PROMPTS for new in (6, 12)]
    wanted = {(n, p, new): alone(lm, MIXTURES.vector(n), p, new) for n, p, new in every}
    assert len(set(wanted.values())) > len(wanted) // 2  # so that a mix-up would show
    server, order = serve(batch=16), [every[k % len(every)] for k in range(200)]
    with ThreadPoolExecutor(200) as pool:
        got = list(pool.map(lambda one: said(server, asked(one[0], one[1], max_tokens=one[2])), order))
    assert got == [wanted[one] for one in order]


def test_chunks_join_to_the_whole(lm, serve):
    server = serve()
    for name in ("model", "tiny@3:1.5"):
        whole = alone(lm, MIXTURES.vector(name))
        status, headers, data = post(server, asked(name, stream=True, stream_options={"include_usage": True}))
        assert status == 200
        assert headers["Content-Type"].startswith("text/event-stream")
        *chunks, counted = events(data)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == whole
        assert len([delta for delta in deltas if delta.get("content")]) > 2
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert counted["usage"]["prompt_tokens"] == len(lm.encode([PROMPTS[0]])[0])


def test_raw_prompts_are_text_or_tokens_as_they_are(lm, serve):
    server, ids = serve(), lm.tokenizer("The moon is")["input_ids"]
    [wanted] = complete(lm, [ids], MIXTURES.vector("tiny@2")[None], LAYER, max_new_tokens=8)
    for prompt in ("The moon is", ["The moon is"], ids, [ids]):
        assert said(server, {"model": "tiny@2", "prompt": prompt, "max_tokens": 8}, RAW) == wanted
    data = post(server, {"model": "tiny@2", "prompt": ids, "max_tokens": 8, "stream": True}, RAW)[2]
    assert "".join(chunk["choices"][0]["text"] for chunk in events(data)) == wanted


def test_a_stop_word_ends_the_reply_before_it(lm, serve):
    server, whole = serve(), alone(lm, None)
    word = whole[4:7]
    for stream in (False, True):
        body = asked(stop=["never said", word], stream=stream)
        if stream:
            chunks = events(post(server, body)[2])
            got = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            [choice] = json.loads(post(server, body)[2])["choices"]
            got, finish = choice["message"]["content"], choice["finish_reason"]
        assert (got, finish) == (whole[: whole.find(word)], "stop")


def test_a_seed_says_the_same_in_any_company(serve):
    server = serve(batch=8)
    body = asked("tiny@3", temperature=1.0, seed=5)
    first = said(server, body)
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(said, server, asked("model", PROMPTS[k % 4], temperature=1.5, seed=k)) for k in range(7)]
        assert pool.submit(said, server, body).result() == first
        assert len({other.result() for other in others}) > 1
    assert len({said(server, asked(temperature=1.0)) for _ in range(4)}) > 1  # without a seed, another every time


def test_draws_follow_the_models_distribution(lm, serve):
    """First tokens of 400 seeds against the softmax of the model's own logits."""
    ids = lm.encode([PROMPTS[0]])[0]
    with torch.no_grad():
        p = (lm.model(torch.tensor([ids])).logits[0, -1] / 0.7).softmax(0)
    desk = serve(waiting=400).desk
    replies = [desk.put(Ask(ids, most=1, temperature=0.7, seed=k)) for k in range(400)]
    for reply in replies:
        while not reply.over:
            reply.wait(10**9, 1.0)
        assert reply.error is None
    most = int(p.argmax())
    share = sum(reply.text == lm.decode([most]) for reply in replies) / 400
    same = sum(float(q) for k, q in enumerate(p) if lm.decode([k]) == lm.decode([most]))
    assert abs(share - same) < 4 * (same * (1 - same) / 400) ** 0.5 + 1e-9


def test_turns_go_through_the_chat_template(lm, serve):
    turns = [("system", "Be brief"), ("user", "Hi"), ("assistant", "Sure"), ("user", "And now?")]
    text = "<s><system>Be brief<user>Hi<assistant>Sure<user>And now?<assistant>"
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert conversation(lm, turns) == ids
    messages = [{"role": role, "content": words} for role, words in turns]
    messages[1]["content"] = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    [wanted] = complete(lm, [ids], None, max_new_tokens=12)
    assert said(serve(), {"model": "model", "messages": messages, "max_tokens": 12}) == wanted


def test_usage_counts_tokens(lm, serve):
    answer = json.loads(post(serve(), asked("tiny", max_completion_tokens=5, max_tokens=None))[2])
    read = len(lm.encode([PROMPTS[0]])[0])
    made = answer["usage"]["completion_tokens"]
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
    assert made == 5 or answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("text", "stop", "kept"), [("ab\ufffd", (), 2), ("abEN", ("END",), 2), ("abc", ("d",), 3)])
def test_a_growing_text_shows_only_what_stays(text, stop, kept):
    assert settled(text, stop) == kept


def test_a_batch_that_fails_fails_nobody_else(lm, serve, monkeypatch):
    """Out of memory with more than two rows, and one request that always fails."""
    desk, go_on, sizes = serve().desk, dct.answering.go_on, []

    def small(lm, rows, *rest, **hooks):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        if [1, 99] in rows:
            raise RuntimeError("no such thing")
        return go_on(lm, rows, *rest, **hooks)

    monkeypatch.setattr("dct.answering.go_on", small)
    prompts = [*lm.encode(PROMPTS), [1, 99]]
    replies = [desk.put(Ask(ids, most=6)) for ids in prompts]
    for reply in replies:
        while not reply.over:
            reply.wait(10**9, 1.0)
    assert [reply.text for reply in replies[:4]] == complete(lm, prompts[:4], max_new_tokens=6)
    assert str(replies[4].error) == "no such thing"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"n": 2}, "n", "not supported"),
        ({"top_p": 0.9}, "top_p", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "not supported"),
        ({"beams": 3}, "beams", "unsupported parameter"),
        ({"suffix_of": "x"}, "suffix_of", "unsupported parameter"),
        ({"temperature": -1}, "temperature", "from 0"),
        ({"temperature": True}, "temperature", "from 0"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": ["x"] * 17}, "stop", "16 at most"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"x": 1}}, "stream_options", "include_usage"),
        ({"max_tokens": 0}, "max_tokens", "from 1 on"),
        ({"max_tokens": 65}, "max_tokens", "64 at most"),
        ({"model": 3}, "model", "/v1/models"),
        ({"messages": []}, "messages", "one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "roles"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "than text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user's"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name", "not supported"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages", "256"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(serve, more, param, says):
    refused(serve(), asked(**more), 400, param, says)


def test_what_changes_nothing_is_taken(lm, serve):
    same = {"n": 1, "top_p": 1.0, "presence_penalty": 0, "user": "me", "tools": [], "seed": None, "logprobs": False}
    assert said(serve(), asked(**same)) == alone(lm, None)


def test_other_requests_are_refused(serve, monkeypatch):
    server = serve()
    refused(server, asked("tiny@77"), 404, "model", "out of range")
    refused(server, b"{", 400, None, "no JSON")
    refused(server, [1], 400, None, "JSON object")
    refused(server, asked(), 404, None, "nothing at", path="/v1/embeddings")
    refused(server, asked(), 415, None, "application/json", **{"Content-Type": "text/plain"})
    refused(server, {"model": "model", "prompt": [10**6]}, 400, "prompt", "beyond", path=RAW)
    refused(server, {"model": "model", "prompt": ["a", "b"]}, 400, "prompt", "one text", path=RAW)
    refused(server, b" " * (httphandler.BODY + 1), 413, None, "at most")
    refused(server, b" " * (3 * httphandler.BODY), 413, None, "at most")


def test_no_web_page_can_ask(serve):
    server = serve()
    port = server.server_address[1]
    refused(server, asked(), 403, None, "web pages", Origin="http://evil.example")
    refused(server, asked(), 403, None, "web pages", Origin="null")
    refused(server, asked(), 403, None, "web pages", **{"Sec-Fetch-Site": "cross-site"})
    for host in (f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "", "10.0.0.1", "[bad"):
        refused(server, asked(), 403, None, "Host header", Host=host)
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        assert post(server, asked(), Host=host)[0] == 200


def test_a_key_is_asked_for(serve):
    server = serve(key="secret")
    refused(server, asked(), 401, None, "API key")
    refused(server, asked(), 401, None, "API key", Authorization="Bearer secre")
    assert post(server, asked(), Authorization="Bearer secret")[0] == 200


def test_too_many_are_sent_away_for_a_while(serve, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr("dct.serving.answer", lambda *_: gate.wait(30))
    server = serve(batch=1, waiting=2)
    kept = [server.desk.put(Ask([1, 5]))]
    while not server.desk._running:
        time.sleep(0.01)
    kept += [server.desk.put(Ask([1, 5])) for _ in range(2)]
    with pytest.raises(BusyError):
        server.desk.put(Ask([1, 5]))
    status, headers, _ = post(server, asked())
    assert (status, headers["Retry-After"]) == (429, "1")
    kept[1].cancel()  # whoever has gone makes room
    server.desk.put(Ask([1, 5]))
    gate.set()


def test_a_request_has_its_time(serve, monkeypatch):
    monkeypatch.setattr("dct.serving.answer", lambda *_: time.sleep(1))
    refused(serve(seconds=0.2), asked(), 504, None, "not done within")


def test_a_client_that_goes_ends_its_reply(lm, serve, monkeypatch):
    monkeypatch.setattr(httphandler, "LOOK_SECONDS", 0.02)
    server, steps, put = serve(most=200), [], Desk.put
    decode = lm.decode

    def slow(ids):
        steps.append(len(ids))
        time.sleep(0.05)
        return decode(ids)

    replies = []
    monkeypatch.setattr(lm, "decode", slow)
    monkeypatch.setattr(Desk, "put", lambda desk, ask: replies.append(put(desk, ask)) or replies[-1])
    body = json.dumps(asked(max_tokens=200, stream=True)).encode()
    with socket.create_connection(server.server_address) as client:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    while not replies[0].over:
        time.sleep(0.02)
    while server.desk._running:
        time.sleep(0.02)
    assert replies[0].finish is None
    assert len(steps) < 100


def dribble(client: socket.socket, seconds: float) -> None:
    """Sends a byte now and then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        client.sendall(b" ")
        time.sleep(0.2)


def test_slow_clients_are_let_go_and_hold_up_nobody(lm, serve, monkeypatch):
    monkeypatch.setattr(httphandler, "READ_SECONDS", 1.0)
    server = serve()
    slow = [socket.create_connection(server.server_address) for _ in range(20)]
    for k, client in enumerate(slow):
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
        )
        client.sendall(head.encode() if k % 2 else b"POST /v1")
    assert said(server, asked()) == alone(lm, None)
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 (a reset or a broken pipe, as the system has it)
        dribble(slow[1], 10)
    for client in slow:
        client.close()
    assert time.monotonic() - began < 8


def test_a_closed_desk_answers_nobody(lm):
    desk = Desk(lm, LAYER)
    desk.close()
    with pytest.raises(DctError, match="going down"):
        desk.put(Ask([1, 5]))


# --- the command and other programs -----------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(workplace, model_folder):
    run = factors()
    run.info |= {"model": str(model_folder), "fingerprint": dct.load(str(model_folder)).fingerprint, "target": 4}
    run.info |= {"method": "exponential", "prompts": [], "width": WIDTH}
    run.save("factors.safetensors")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-m", "dct", "serve", "factors.safetensors", "--port", "0", "--json"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore Ctrl+C
    child = subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    )
    line = child.stdout.readline()
    assert line, child.communicate()
    told = json.loads(line)
    assert told["model"] == "tiny-llama"
    port = int(told["url"].rsplit(":", 1)[1].removesuffix("/v1"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models")
    assert [one["id"] for one in json.loads(connection.getresponse().read())["data"]] == told["models"]
    child.send_signal(signal.SIGINT)
    _, noted = child.communicate(timeout=60)
    assert child.returncode == 0, noted
    assert "curl" in noted
    assert "Traceback" not in noted


def test_the_openai_client(lm, serve):
    openai = pytest.importorskip("openai")
    server = serve()
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["tiny", "tiny@4", "tiny@-1"]
    assert client.models.retrieve("tiny@3:1+5:0.5").id == "tiny@3:1+5:0.5"
    messages = [{"role": "user", "content": PROMPTS[0]}]

    def ask(k: int) -> str:
        name = ("tiny@3:1.5", "tiny@5:1.5")[k % 2]
        done = client.chat.completions.create(model=name, messages=messages, max_tokens=12, temperature=0)
        return done.choices[0].message.content

    wanted = [alone(lm, MIXTURES.vector(name)) for name in ("tiny@3:1.5", "tiny@5:1.5")]
    assert wanted[0] != wanted[1]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(200))) == wanted * 100
    stream = client.chat.completions.create(model="tiny@3:1.5", messages=messages, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted[0]
    assert client.completions.create(model="tiny", prompt="The moon", max_tokens=3).usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="`n` is not supported"):
        client.chat.completions.create(model="tiny", messages=messages, n=2)
    with pytest.raises(openai.NotFoundError, match="out of range"):
        client.chat.completions.create(model="tiny@99", messages=messages)

"""The words of OpenAI's interface, to the extent that they mean something here: requests read, replies written.

What a parameter would change and cannot is refused by its name, never passed over: a client that asks for two choices
or for tools gets neither silently. Knows no sockets.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dct.answering import Ask, Reply
from dct.conversation import Turn, conversation
from dct.declaration import SEEDS
from dct.errors import DctError
from dct.mixture import Mixtures, UnknownModelError
from dct.model import LanguageModel

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Parameters that clients send although they change nothing, and the values of which that is so; others are refused."""

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Parameters that are about the service and not about the reply: read and forgotten."""

COMMON = ("model", "max_tokens", "temperature", "seed", "stop", "stream", "stream_options")
CHAT = (*COMMON, "messages", "max_completion_tokens")
COMPLETION = (*COMMON, "prompt")

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

STOPS = 16
"""Stop words of a request, at most."""

HOTTEST = 2.0
"""The highest temperature."""


class RefusedError(DctError):
    """A request that cannot be answered.

    Attributes:
        param: the parameter that is wrong, if it is one.
        status: of HTTP.
        code: OpenAI's word for it, if there is one.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, eq=False)
class Call:
    """A request that can be answered.

    Attributes:
        model: as it was named.
        ask: what is to be completed.
        chat: it is one of chat.
        stream: the reply is wanted in pieces.
        usage: with the count of tokens at their end.
    """

    model: str
    ask: Ask
    chat: bool
    stream: bool
    usage: bool


class Reader:
    """Reads requests for a model.

    Args:
        lm: the model.
        mixtures: its names.
        most: tokens of a reply, at most; a request that names no number gets as many.
        system: system message of conversations that have none, if any.
    """

    def __init__(self, lm: LanguageModel, mixtures: Mixtures, most: int = 1024, system: str | None = None) -> None:
        self.lm, self.mixtures, self.most, self.system = lm, mixtures, most, system
        lm.tokenizer("", add_special_tokens=False)  # the first call settles how it pads, which threads must not do

    def chat(self, body: Any) -> Call:
        """A request of /v1/chat/completions.

        Raises:
            RefusedError: it cannot be answered.
        """
        fields = _known(body, CHAT)
        turns = self._turns(fields.get("messages"))
        return self._call(fields, "messages", lambda: conversation(self.lm, turns), chat=True)

    def completion(self, body: Any) -> Call:
        """A request of /v1/completions: text or tokens as they are, without a template.

        Raises:
            RefusedError: it cannot be answered.
        """
        fields = _known(body, COMPLETION)
        return self._call(fields, "prompt", lambda: self._raw(fields.get("prompt")), chat=False)

    def _call(self, fields: dict[str, Any], named: str, read: Any, *, chat: bool) -> Call:
        model = fields.get("model")
        if not isinstance(model, str):
            raise RefusedError("say which `model`: GET /v1/models lists some", "model")
        try:
            added = self.mixtures.vector(model)
        except UnknownModelError as error:
            raise RefusedError(str(error), "model", status=404, code="model_not_found") from error
        ask = Ask((), added, **self._how(fields))
        stream = _flag(fields.get("stream"), "stream")
        options = fields.get("stream_options") or {}
        if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
            raise RefusedError("`stream_options` takes include_usage alone", "stream_options")
        usage = _flag(options.get("include_usage"), "stream_options")
        try:
            ids = read()
        except RefusedError:
            raise
        except DctError as error:
            raise RefusedError(str(error), named) from error
        most = self._fitting(len(ids), fields, named)
        return Call(model, replace(ask, ids=ids, most=most, watched=stream), chat, stream, usage)

    def _how(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Temperature, seed and stop words."""
        heat = fields.get("temperature", 0)
        if type(heat) not in (int, float) or not 0 <= heat <= HOTTEST:
            raise RefusedError(f"`temperature` is a number from 0 (greedy) to {HOTTEST:g}", "temperature")
        seed = fields.get("seed", secrets.randbelow(SEEDS))
        if type(seed) is not int or not -(2**63) <= seed < 2**63:
            raise RefusedError("`seed` is a whole number of 64 bits", "seed")
        stop = fields.get("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or not all(isinstance(s, str) and 0 < len(s) <= 1000 for s in stop):
            raise RefusedError("`stop` is a text or a list of texts, none of them empty", "stop")
        if len(stop) > STOPS:
            raise RefusedError(f"`stop` holds {len(stop)} texts: {STOPS} at most", "stop")
        # Below a thousandth a draw is the greatest logit, and their quotient may leave the range of float32.
        return {"temperature": float(heat) if heat >= 1e-3 else 0.0, "seed": seed % 2**63, "stop": tuple(stop)}

    def _fitting(self, length: int, fields: dict[str, Any], named: str) -> int:
        """How many tokens the reply to a prompt of so many may have."""
        context = self.lm.context
        room = context - length if context else self.most
        if room < 1:
            raise RefusedError(
                f"the prompt has {length} tokens and {self.lm.name} reads {context}: nothing is left for a reply",
                named,
                code="context_length_exceeded",
            )
        param = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        most = fields.get(param, min(self.most, room))
        if type(most) is not int or most < 1:
            raise RefusedError(f"`{param}` is a whole number from 1 on", param)
        if most > self.most:
            raise RefusedError(f"`{param}` is {most}, and this server makes {self.most} at most", param)
        if most > room:
            raise RefusedError(
                f"the prompt has {length} tokens, `{param}` asks for {most}, and {self.lm.name} reads {context}",
                param,
                code="context_length_exceeded",
            )
        return most

    def _turns(self, messages: Any) -> list[Turn]:
        """A conversation: a system message, if any, then user and assistant, the user last."""
        if not isinstance(messages, list) or not messages:
            raise RefusedError("`messages` is a list of one message at least", "messages")
        turns: list[Turn] = []
        for k, message in enumerate(messages):
            where = f"messages[{k}]"
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise RefusedError(f"`{where}` has one of the roles {', '.join(ROLES)}", where)
            extra = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
            if extra:
                raise RefusedError(f"`{where}.{extra[0]}` is not supported", f"{where}.{extra[0]}")
            role, text = ROLES[message["role"]], _content(message.get("content"), where)
            if role == "system" and k > 0:
                raise RefusedError(f"`{where}`: one system message, and in front of all others", where)
            if role != "system" and not text.strip():
                raise RefusedError(f"`{where}.content` is empty", f"{where}.content")
            turns.append((role, text))
        if turns[-1][0] != "user":
            raise RefusedError("the last of `messages` must be the user's", "messages")
        if turns[0][0] != "system" and self.system:
            turns.insert(0, ("system", self.system))
        return turns if turns[0][1] else turns[1:]  # an empty system message says that there is to be none

    def _raw(self, prompt: Any) -> list[int]:
        """A prompt of text or tokens, or a list of one such."""
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, list) and prompt and all(type(k) is int for k in prompt):
            if not all(0 <= k < self.lm.vocabulary for k in prompt):
                raise RefusedError(f"`prompt` holds tokens beyond 0 to {self.lm.vocabulary - 1}", "prompt")
            return prompt
        if not isinstance(prompt, str) or not prompt:
            raise RefusedError("`prompt` is one text or one list of tokens, not empty", "prompt")
        ids = list(self.lm.tokenizer(prompt)["input_ids"])
        end = self.lm.tokenizer.eos_token
        if ids and end and ids[-1] == self.lm.tokenizer.eos_token_id and not prompt.endswith(end):
            ids.pop()  # some tokenizers end every text, and a text that has ended is not gone on with
        if not ids:
            raise RefusedError("`prompt` has no tokens", "prompt")
        return ids


def _known(body: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of a request that say something; null counts as left out."""
    if not isinstance(body, Mapping):
        raise RefusedError("the request is a JSON object")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name, value in given.items():
        if name in known:
            continue
        if name not in NEUTRAL:
            raise RefusedError(f"unsupported parameter: `{name[:100]}`", name[:100], code="unsupported_parameter")
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL[name]):
            raise RefusedError(f"`{name}` is not supported: leave it out", name, code="unsupported_parameter")
    return {name: value for name, value in given.items() if name in known}


def _flag(value: Any, name: str) -> bool:
    if value not in (None, True, False) or type(value) is int:
        raise RefusedError(f"`{name}` is true or false", name)
    return bool(value)


def _content(content: Any, where: str) -> str:
    """The text of a message, given as such or in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RefusedError(f"`{where}.content` is text", f"{where}.content")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RefusedError(f"`{where}.content` holds other parts than text", f"{where}.content")
    return "".join(part["text"] for part in content)


class Writer:
    """Writes the reply to one call, whole or in pieces."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.id = f"{'chatcmpl' if call.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A finished reply."""
        said = {"message": {"role": "assistant", "content": reply.text}} if self.call.chat else {"text": reply.text}
        return {**self._object(reply.finish, said, chunk=False), "usage": self._usage(reply)}

    def begun(self) -> dict[str, Any] | None:
        """What a stream begins with, if anything."""
        return self._object(None, {"delta": {"role": "assistant", "content": ""}}) if self.call.chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the reply."""
        return self._object(None, {"delta": {"content": text}} if self.call.chat else {"text": text})

    def ended(self, reply: Reply) -> list[dict[str, Any]]:
        """What a stream ends with."""
        last = self._object(reply.finish, {"delta": {}} if self.call.chat else {"text": ""})
        if not self.call.usage:
            return [last]
        return [last, {**self._object(None, {}), "choices": [], "usage": self._usage(reply)}]

    def _object(self, finish: str | None, said: dict[str, Any], *, chunk: bool = True) -> dict[str, Any]:
        kind = "text_completion" if not self.call.chat else f"chat.completion{'.chunk' if chunk else ''}"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.call.model,
            "choices": [choice],
        }

    def _usage(self, reply: Reply) -> dict[str, int]:
        read, made = len(self.call.ask.ids), reply.tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def model_list(mixtures: Mixtures, most: int) -> dict[str, Any]:
    """The models that are told of, as /v1/models has them."""
    return {"object": "list", "data": [model_object(name) for name in mixtures.names(most)]}


def model_object(name: str) -> dict[str, Any]:
    """One model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "dct"}


def error_object(error: Exception, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}

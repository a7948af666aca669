"""
What a generation request asks for, read out of an OpenAI-style body by a total function.

The body stays opaque: nothing here changes it, and no field is required of it. Only what the
engine itself reads on that path counts, so that a field the engine ignores (`max_output_tokens` in
a chat request, say) cannot buy a better place.

Which text of a conversation is scored: the last user message that has text, behind a note of how
long the answers before it were (`conversation.py`). Rankers read about 128 tokens from the start,
so a whole conversation would show them only its system prompt, which is the same for every request
of an application and says nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import SchemaValidator, ValidationError, core_schema

from pars.errors import ParsError
from pars.request.conversation import prompt_of, with_note, without_answer
from pars.request.fields import Unread, fields_of
from pars.request.paths import plain
from pars.request.token_counts import CHARS_PER_TOKEN, tokens_in, tokens_of_message

MAX_COUNT = 1 << 31  # no request asks for more tokens or answers; keeps arithmetic in range
DEFAULT_COMPLETION_TOKENS = 16  # the OpenAI default of /v1/completions; vLLM and SGLang keep it
DECISION_TOKENS = 8  # of a structured decision: a label
UNTIL_FULL_TOKENS = 8192  # taken for an answer that only the model's context ends
MOST_PROMPTS = 64  # of a list that are told apart; the rest count together
MOST_MESSAGES = 512  # the newest of a conversation, in which its note and its question are sought

# As vLLM's and SGLang's own models (pydantic, lax mode) take a number or a switch.
_AS_INT = SchemaValidator(core_schema.int_schema())
_AS_BOOL = SchemaValidator(core_schema.bool_schema())


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    One prompt of a request, or several that are not told apart.

    Attributes:
        text: None where there is none to read (token ids, images).
        num_tokens: Of the prompt; of several, of all together.
        num_prompts: How many it stands for.
    """

    text: str | None
    num_tokens: float
    num_prompts: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """
    Prompts to be answered, with the client's limits on each answer (in tokens).

    Attributes:
        prompts: One or more.
        max_tokens: Of one answer; None where the client set no limit.
        min_tokens: Of one answer.
        num_answers: To each prompt.
    """

    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    min_tokens: int = 0
    num_answers: int = 1

    @classmethod
    def from_openai(cls, body: dict[str, Any] | str | bytes, path: str | None = None) -> "Request":
        """
        The request in an OpenAI-style body, read as the gateway reads it.

        Args:
            body: The body, parsed or as JSON.
            path: Where it is sent, such as "/v1/chat/completions"; None goes by its fields
                (`messages`, `prompt` or `input`).

        Raises:
            ParsError: the body is no JSON object, or the path generates no answers.
        """
        reader = _any_shape if path is None else reader_of(path)
        if reader is None:
            known = ", ".join(list(READERS)[:3])
            raise ParsError(f"path {path!r} generates no answers: want one such as {known}")
        return reader(fields_of(body))

    @property
    def texts(self) -> list[str]:
        """The prompts that can be read, as a ranker reads them."""
        return [prompt.text for prompt in self.prompts if prompt.text]


def read_request(path: str, body: Any) -> Request | None:
    """
    The request in the parsed JSON `body` sent to `path`; None when the path generates nothing.

    Total: for any JSON value the answer is a request, if need be with no text in it.
    """
    reader = reader_of(path)
    if reader is None:
        return None
    return reader(body if isinstance(body, dict) else {})


def unread_request(num_bytes: int) -> Request:
    """
    What a body that could not be read is taken to ask for: a prompt of its size.

    Whoever hides a prompt (padding, odd encodings) gains nothing by it.
    """
    return Request((Prompt(None, num_bytes / CHARS_PER_TOKEN),))


def head_and_tail(text: str, max_chars: int) -> str:
    """Of a longer text its first three quarters of `max_chars` and its last quarter."""
    if len(text) <= max_chars:
        return text
    num_last = max_chars // 4
    return text[: max_chars - num_last] + text[len(text) - num_last :]


def reader_of(path: str) -> "Reader | None":
    """
    The reader for `path`, under any root path or prefix (`/team-a/v1/completions`).

    A path that a server in between may take for such a one (`/v1//completions/`) is one, too.
    """
    path = plain(path)
    for suffix, reader in READERS.items():
        if path.endswith(suffix):
            return reader
    return None


Body = dict[str, Any]
Reader = Callable[[Body], Request]


def _completions(body: Body) -> Request:
    limit = body.get("max_tokens")
    limit = DEFAULT_COMPLETION_TOKENS if limit is None else limit
    return _request(body, tuple(_prompts(body.get("prompt"))), limit)


def _chat(body: Body) -> Request:
    return _request(body, (_conversation(body.get("messages")),), _chat_limit(body))


def _batch_chat(body: Body) -> Request:
    conversations = body.get("messages")
    prompts = map(_conversation, conversations if isinstance(conversations, list) else ())
    return _request(body, tuple(prompts), _chat_limit(body))


def _chat_limit(body: Body) -> Any:
    limit = body.get("max_completion_tokens")
    return body.get("max_tokens") if limit is None else limit


def _responses(body: Body) -> Request:
    asked = body.get("input")
    prompt = _plain(asked) if isinstance(asked, str) else _conversation(asked)
    extra = len(text) if isinstance(text := body.get("instructions"), str) else 0
    prompt = Prompt(prompt.text, prompt.num_tokens + extra / CHARS_PER_TOKEN)
    switches = {"ignore_eos": body.get("ignore_eos")}  # this path has neither n nor min_tokens
    return _request(switches, (prompt,), body.get("max_output_tokens"))


def _scoring(body: Body) -> Request:
    """vLLM's /generative_scoring: one token for each item, behind the same query."""
    query, items = tokens_in(body.get("query")), body.get("items")
    num_items = len(items) if isinstance(items, list) and items else 1
    if isinstance(items, Unread):
        num_items = items.num_commas + 1
    return Request((Prompt(None, num_items * query + tokens_in(items), num_items),), 1)


def _decisions(body: Body) -> Request:
    """vLLM's /v1/systemone: a token or few for each question about one state."""
    questions = body.get("questions")
    num_questions = max(1, len(questions)) if isinstance(questions, dict | list) else 1
    told = sum(tokens_in(body.get(name)) for name in ("state", "instructions", "questions"))
    return Request((Prompt(None, told, num_questions),), DECISION_TOKENS)


def _messages(body: Body) -> Request:
    """Anthropic's and Cohere's chats, which have none of vLLM's own fields."""
    return _request({}, (_conversation(body.get("messages")),), body.get("max_tokens"))


def _native(body: Body) -> Request:
    """vLLM's /inference/v1/generate and SGLang's /generate."""
    parameters = body.get("sampling_params")
    parameters = parameters if isinstance(parameters, dict) else {}
    prompt = body.get("text")
    for name in ("token_ids", "input_ids"):
        prompt = body.get(name) if prompt is None else prompt
    max_tokens = parameters.get("max_new_tokens", parameters.get("max_tokens"))
    return _request(parameters, tuple(_prompts(prompt)), max_tokens)


def _vertex(body: Body) -> Request:
    """SGLang's /vertex_generate: many prompts, with the same parameters."""
    instances, parameters = body.get("instances"), body.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if isinstance(instances, list):
        told = [it if isinstance(it, dict) else {} for it in instances]
        instances = [it.get("text") or it.get("input_ids") or "" for it in told]
    return _native({**parameters, "text": instances})


def _any_shape(body: Body) -> Request:
    """SageMaker's /invocations takes whatever the other paths take."""
    for name, reader in (("messages", _chat), ("prompt", _completions), ("input", _responses)):
        if name in body:
            return reader(body)
    return _request(body, (), None)


# A path generates answers when it ends so; the first match counts.
READERS: dict[str, Reader] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/chat/completions/batch": _batch_chat,
    "/inference/v1/generate": _native,
    "/generate": _native,
    "/vertex_generate": _vertex,
    "/generative_scoring": _scoring,
    "/v1/systemone": _decisions,
    "/cohere/v2/chat": _messages,
    "/invocations": _any_shape,
}


def _request(body: Body, prompts: tuple[Prompt, ...], max_tokens: Any) -> Request:
    limit = _count(max_tokens)
    least = _count(body.get("min_tokens")) or 0
    if _switch(body.get("ignore_eos")):
        least = UNTIL_FULL_TOKENS if limit is None else limit
    num_answers = max(_count(body.get("n")) or 1, _count(body.get("best_of")) or 1)
    return Request(prompts or (Prompt(None, 0.0),), limit, least, num_answers)


def _count(value: Any) -> int | None:
    """What the engine makes a count of (2, 2.0, " 2 "), from 0 to MAX_COUNT; None otherwise."""
    if type(value) is not int:
        try:
            value = None if value is None else _AS_INT.validate_python(value)
        except ValidationError:
            return None
    return None if value is None else min(max(value, 0), MAX_COUNT)


def _switch(value: Any) -> bool:
    """What the engine makes a switch of (true, 1, "yes"); False for anything else."""
    if type(value) is not bool:
        try:
            return value is not None and _AS_BOOL.validate_python(value)
        except ValidationError:
            return False
    return value


def _prompts(prompt: Any) -> Iterator[Prompt]:
    """The prompts of a completions request: a string, strings, token ids, or lists of token ids."""
    if isinstance(prompt, str):
        yield _plain(prompt)
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        yield from map(_one_of_many, prompt[:MOST_PROMPTS])
        if rest := prompt[MOST_PROMPTS:]:
            yield Prompt(None, sum(map(tokens_in, rest)), len(rest))
    elif isinstance(prompt, Unread):
        # Of texts, each comma may part two prompts; of token ids, each list is one.
        num_prompts = prompt.num_commas + 1 if prompt.has_text else prompt.num_lists - 1
        yield Prompt(None, tokens_in(prompt), max(1, num_prompts))
    else:
        yield Prompt(None, tokens_in(prompt))


def _one_of_many(prompt: Any) -> Prompt:
    return _plain(prompt) if isinstance(prompt, str) else Prompt(None, tokens_in(prompt))


def _plain(text: str) -> Prompt:
    return Prompt(with_note(text), len(text) / CHARS_PER_TOKEN)


def _conversation(messages: Any) -> Prompt:
    """Scores the last user message with text; every message counts towards the prompt's tokens."""
    if isinstance(messages, Unread):
        return Prompt(None, tokens_in(messages))
    told = messages if isinstance(messages, list) else []
    num_tokens = sum(map(tokens_of_message, told))
    # An answer at the end is one that the engine is to go on with, and not one that came before.
    return Prompt(prompt_of(without_answer(told[-MOST_MESSAGES:])), num_tokens)

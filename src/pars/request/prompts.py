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

from pars.request.conversation import prompt_of, text_of, with_note, without_answer

CHARS_PER_TOKEN = (
    4.0  # English text in the tokenizers of today's models; only feeds the prompt's cost
)
MAX_COUNT = 1 << 31  # no request asks for more tokens or answers; keeps arithmetic in range
DEFAULT_COMPLETION_TOKENS = 16  # the OpenAI default of /v1/completions; vLLM and SGLang keep it


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request. `text` is None where there is none to read (token ids, images)."""

    text: str | None
    num_tokens: float


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Prompts to be answered, with the client's limits on each answer (in tokens)."""

    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    min_tokens: int = 0
    num_answers: int = 1


def read_request(path: str, body: Any) -> GenerationRequest | None:
    """
    The request in the parsed JSON `body` sent to `path`; None when the path generates nothing.

    Total: for any JSON value the answer is a request, if need be with no text in it.
    """
    reader = reader_of(path)
    if reader is None:
        return None
    return reader(body if isinstance(body, dict) else {})


def reader_of(path: str) -> "Reader | None":
    """The reader for `path`, under any root path or prefix (`/team-a/v1/completions`)."""
    for suffix, reader in READERS.items():
        if path.endswith(suffix):
            return reader
    return None


Body = dict[str, Any]
Reader = Callable[[Body], GenerationRequest]


def _completions(body: Body) -> GenerationRequest:
    max_tokens = body.get("max_tokens", DEFAULT_COMPLETION_TOKENS)
    return _request(body, tuple(_prompts(body.get("prompt"))), max_tokens)


def _chat(body: Body) -> GenerationRequest:
    return _request(body, (_conversation(body.get("messages")),), _chat_limit(body))


def _batch_chat(body: Body) -> GenerationRequest:
    conversations = body.get("messages")
    prompts = map(_conversation, conversations if isinstance(conversations, list) else ())
    return _request(body, tuple(prompts), _chat_limit(body))


def _chat_limit(body: Body) -> Any:
    limit = body.get("max_completion_tokens")
    return body.get("max_tokens") if limit is None else limit


def _responses(body: Body) -> GenerationRequest:
    asked = body.get("input")
    prompt = _plain(asked) if isinstance(asked, str) else _conversation(asked)
    extra = len(text) if isinstance(text := body.get("instructions"), str) else 0
    prompt = Prompt(prompt.text, prompt.num_tokens + extra / CHARS_PER_TOKEN)
    return _request(body, (prompt,), body.get("max_output_tokens"))


def _messages(body: Body) -> GenerationRequest:
    return _request(body, (_conversation(body.get("messages")),), body.get("max_tokens"))


def _native(body: Body) -> GenerationRequest:
    """vLLM's /inference/v1/generate and SGLang's /generate."""
    parameters = body.get("sampling_params")
    parameters = parameters if isinstance(parameters, dict) else {}
    prompt = body.get("text")
    for name in ("token_ids", "input_ids"):
        prompt = body.get(name) if prompt is None else prompt
    max_tokens = parameters.get("max_new_tokens", parameters.get("max_tokens"))
    return _request(parameters, tuple(_prompts(prompt)), max_tokens)


def _any_shape(body: Body) -> GenerationRequest:
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
    "/invocations": _any_shape,
}


def _request(body: Body, prompts: tuple[Prompt, ...], max_tokens: Any) -> GenerationRequest:
    limit = _count(max_tokens)
    least = _count(body.get("min_tokens")) or 0
    if body.get("ignore_eos") is True and limit is not None:
        least = limit
    num_answers = max(_count(body.get("n")) or 1, _count(body.get("best_of")) or 1)
    return GenerationRequest(prompts or (Prompt(None, 0.0),), limit, least, num_answers)


def _count(value: Any) -> int | None:
    """A JSON number as a count from 0 to MAX_COUNT; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return int(min(max(value, 0), MAX_COUNT))


def _prompts(prompt: Any) -> Iterator[Prompt]:
    """The prompts of a completions request: a string, strings, token ids, or lists of token ids."""
    if isinstance(prompt, str):
        yield _plain(prompt)
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        for item in prompt:
            yield _plain(item) if isinstance(item, str) else Prompt(None, _num_ids(item))
    else:
        yield Prompt(None, _num_ids(prompt))


def _num_ids(value: Any) -> float:
    return float(len(value)) if isinstance(value, list) else 0.0


def _plain(text: str) -> Prompt:
    return Prompt(with_note(text), len(text) / CHARS_PER_TOKEN)


def _conversation(messages: Any) -> Prompt:
    """Scores the last user message with text; every message counts towards the prompt's tokens."""
    told = messages if isinstance(messages, list) else ()
    contents = (message.get("content") for message in told if isinstance(message, dict))
    num_chars = sum(len(text_of(content)) for content in contents)
    # An answer at the end is one that the engine is to go on with, and not one that came before.
    return Prompt(prompt_of(without_answer(told)), num_chars / CHARS_PER_TOKEN)

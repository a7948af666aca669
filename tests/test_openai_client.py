"""The official OpenAI client runs unmodified through the gateway."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gateways import gateway_to

from fake_engine import FakeEngine

MODEL = "fake"
ASK = [{"role": "user", "content": "Say tok"}]


@pytest.fixture
def base_url(tmp_path: Path) -> Iterator[str]:
    """An API base URL of a gateway with the key `sk-test` in front of a fake engine."""
    with (
        FakeEngine(num_slots=8).served() as up,
        gateway_to(up, tmp_path, settings={"api_keys": "sk-test"}) as (url, _),
    ):
        yield f"{url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="sk-test", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    """A chat answer and its usage arrive."""
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=3)
    assert answer.choices[0].message.content == "tok tok tok"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_completions(client: openai.OpenAI) -> None:
    """A completion arrives; its default length is OpenAI's 16 tokens."""
    answer = client.completions.create(model=MODEL, prompt="Say tok")
    assert answer.choices[0].text.split() == ["tok"] * 16


def test_streams(client: openai.OpenAI) -> None:
    """Chat and completions stream piece by piece to their end."""
    chat = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=3, stream=True)
    assert [chunk.choices[0].delta.content for chunk in chat] == ["tok0 ", "tok1 ", "tok2 "]
    plain = client.completions.create(model=MODEL, prompt="x", max_tokens=2, stream=True)
    assert [chunk.choices[0].text for chunk in plain] == ["tok0 ", "tok1 "]


def test_a_stream_may_be_left_early(client: openai.OpenAI) -> None:
    """A stream closed after its first piece leaves the client able to go on."""
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=100_000, stream=True
    )
    next(iter(stream))
    stream.close()
    assert client.models.list().data[0].id == MODEL


def test_tools(client: openai.OpenAI) -> None:
    """A tool call comes back."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, tools=[tool])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "weather"


def test_the_engines_errors_are_the_engines(client: openai.OpenAI) -> None:
    """An error of the upstream arrives as it was made."""
    with pytest.raises(openai.BadRequestError, match="want a prompt or messages"):
        client.post("/completions", body={"model": MODEL}, cast_to=object)
    with pytest.raises(openai.NotFoundError, match="no such path"):
        client.files.list()


def test_a_wrong_key_is_an_authentication_error(base_url: str) -> None:
    """The gateway's 401 is the client's AuthenticationError."""
    with (
        openai.OpenAI(base_url=base_url, api_key="sk-other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"),
    ):
        client.models.list()


def test_a_dead_upstream_is_a_server_error(tmp_path: Path) -> None:
    """The gateway's 502 is an InternalServerError, with its code and reason."""
    with (
        gateway_to("http://127.0.0.1:1", tmp_path) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="cannot connect") as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=ASK)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")


def test_many_at_once(base_url: str) -> None:
    """Forty concurrent calls of the asynchronous client get their own answers."""

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-test") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=n)
                    for n in range(1, 41)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [" ".join(["tok"] * n) for n in range(1, 41)]

"""The fake engine on a real socket: an OpenAI-compatible server that orders as vLLM does."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from pars.doctor.metrics_page import MetricsPage
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.step_time import EnginePreset
from pars.prove.engine.stepping import EngineLimits
from pars.prove.fake_engine.server import FakeEngine

from serving import eventually, serve_in_thread

HEADER = "X-Vllm-Priority"


@contextlib.contextmanager
def served(speed: float = 50.0, **options) -> Iterator[str]:
    preset = EnginePreset.named("h100-8b")
    with serve_in_thread(FakeEngine.of_preset(preset, speed=speed, **options)) as url:
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as url:
        yield url


def metric(url: str, name: str) -> float:
    return MetricsPage.parse(httpx.get(f"{url}/metrics").text).total(name)


def test_an_answer_has_exactly_max_tokens(url: str):
    """As text and in its usage; a prompt counts a token every four characters."""
    body = {"prompt": "twelve chars", "max_tokens": 37}
    answer = httpx.post(f"{url}/v1/completions", json=body).raise_for_status().json()

    assert answer["choices"][0]["text"] == " tok" * 37
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 37, "total_tokens": 40}


def test_the_official_client_streams_a_chat(url: str):
    """The role comes first, then a word a token, then the reason and the usage."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        [model] = client.models.list().data
        stream = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        *pieces, last = list(stream)

    assert [piece.choices[0].delta.content for piece in pieces] == ["", *[" tok"] * 5]
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * 5 + ["length"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


def test_one_event_a_token(url: str):
    """A stream of 20 tokens is 20 events, and the end mark."""
    body = {"prompt": "x", "max_tokens": 20, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
        *events, end = [line.removeprefix("data: ") for line in answer.iter_lines() if line]

    assert end == "[DONE]"
    assert [json.loads(event)["choices"][0]["text"] for event in events] == [" tok"] * 20


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("no json", 400, ""),
        ([], 400, "JSON object"),
        ({"max_tokens": 4}, 400, "want one prompt"),
        ({"prompt": ["a", "b"]}, 400, "want one prompt"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens must be"),
        ({"prompt": "x", "priority": 1.5}, 400, "priority must be"),
        ({"prompt": "x", "n": 2}, 400, "n must be 1"),
        ({"prompt": "x", "max_tokens": 10**9}, 400, "do not fit"),
        ({"prompt": "x", "model": "absent"}, 404, "The model `absent` does not exist."),
    ],
)
def test_what_it_cannot_answer_is_refused(url: str, body: object, status: int, told: str):
    """With OpenAI's shape of error, and what would be right."""
    content = body if isinstance(body, str) else json.dumps(body)
    answer = httpx.post(f"{url}/v1/completions", content=content)

    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_its_pages(url: str):
    """Health, version and a 404 are there, as of vLLM."""
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/version").json()["version"] == "0.32.0"
    assert httpx.get(f"{url}/nothing").status_code == 404


async def completed(url: str, asks: list[tuple[dict, dict]]) -> list[int]:
    """Send (body, headers) one by one behind a request that runs; the order in which they end."""
    order: list[int] = []

    async def send(client: httpx.AsyncClient, number: int) -> None:
        body, headers = asks[number]
        answer = await client.post("/v1/completions", json=body, headers=headers)
        answer.raise_for_status()
        order.append(number)

    def seen(name: str) -> float:
        return metric(url, f"vllm:num_requests_{name}")

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        holder = asyncio.create_task(
            client.post("/v1/completions", json={"prompt": "x", "max_tokens": 200_000})
        )
        await asyncio.to_thread(eventually, lambda: seen("running") == 1)
        tasks = []
        for number in range(len(asks)):
            tasks.append(asyncio.create_task(send(client, number)))
            await asyncio.to_thread(eventually, lambda n=number: seen("waiting") == n + 1)
        holder.cancel()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(eventually, lambda: seen("running") == 0)
    return order


def ask(**fields):
    return {"prompt": "x", "max_tokens": 4, **fields}


def test_priorities_order_the_queue():
    """By header or body, the header winning; one that is no integer is ignored; ties by arrival."""
    with served(max_num_seqs=1) as url:
        asks = [
            (ask(priority=50), {}),
            (ask(), {HEADER: "30"}),
            (ask(priority=99), {HEADER: "-10"}),
            (ask(priority=40), {HEADER: "abc"}),
            (ask(), {HEADER: "30"}),
        ]

        assert asyncio.run(completed(url, asks)) == [2, 1, 4, 3, 0]


def test_fcfs_ignores_priorities():
    """As vLLM without --scheduling-policy priority: no error, and the order of arrival."""
    with served(max_num_seqs=1, scheduling_policy="fcfs") as url:
        asks = [(ask(priority=priority), {}) for priority in (3, 1, 2)]

        assert asyncio.run(completed(url, asks)) == [0, 1, 2]


def test_a_client_that_leaves_frees_its_slot_and_its_place():
    """The one that ran and the one that waited are gone, and are not counted as answered."""
    with served(max_num_seqs=1) as url, contextlib.ExitStack() as open_streams:
        body = {"prompt": "x", "max_tokens": 200_000, "stream": True}
        answer = open_streams.enter_context(
            httpx.stream("POST", f"{url}/v1/completions", json=body)
        )
        lines = answer.iter_lines()
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=ask(), timeout=0.2)
        eventually(lambda: metric(url, "vllm:num_requests_waiting") == 0)
        open_streams.close()

        eventually(lambda: metric(url, "vllm:num_requests_running") == 0)
        assert metric(url, "vllm:request_success_total") == 0


def test_the_order_is_that_of_the_stepped_engine():
    """Twelve waiting requests end as FastEngine alone ends them, with preemptions on the way."""
    limits = EngineLimits(max_num_seqs=4, num_blocks=14, block_size=16)
    lengths = [60, 5, 33, 80, 12, 47, 9, 71, 26, 18, 64, 3]
    expected = stepped(limits, lengths)

    engine = Gated(limits, len(lengths))
    with serve_in_thread(FakeEngine(engine, lambda step: 0.0002)) as url:
        asks = [ask(max_tokens=n, priority=i % 3) for i, n in enumerate(lengths)]
        asyncio.run(one_by_one(url, asks))
        num_preemptions = metric(url, "vllm:num_preemptions_total")

    assert engine.order == expected
    assert num_preemptions > 0


class Gated(FastEngine):
    """Begins once so many requests wait; remembers the order in which they end."""

    def __init__(self, limits: EngineLimits, num_to_wait_for: int) -> None:
        super().__init__(limits)
        self.num_missing = num_to_wait_for
        self.order: list[int] = []

    @property
    def has_work(self) -> bool:
        return self.num_missing == 0 and super().has_work

    def add(self, *values, **named) -> None:
        super().add(*values, **named)
        self.num_missing -= 1

    def step(self):
        step = super().step()
        self.order += [int(request_id.removeprefix("cmpl-")) for request_id in step.finished]
        return step


def stepped(limits: EngineLimits, lengths: list[int]) -> list[int]:
    engine = FastEngine(limits)
    for number, num_tokens in enumerate(lengths):
        engine.add(f"{number:03d}", 1, num_tokens, number % 3, float(number))
    order = []
    while engine.has_work:
        order += engine.step().finished
    return [int(request_id) for request_id in order]


async def one_by_one(url: str, bodies: list[dict]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        tasks = []
        for number, body in enumerate(bodies, 1):
            tasks.append(asyncio.create_task(client.post("/v1/completions", json=body)))
            if number < len(bodies):
                await asyncio.to_thread(
                    eventually,
                    lambda n=number: metric(url, "vllm:num_requests_waiting") == n,
                )
        for answer in await asyncio.gather(*tasks):
            answer.raise_for_status()

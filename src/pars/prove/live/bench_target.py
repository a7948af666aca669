"""
The server under a bench: what it is, whether priorities would reach it, and how it is asked.

    target = await prepared(options, workload, client)       # asks it, and warms it up
    path, body, headers = request_of(options, target, turn, row)
    ... = with_priority(options, target, (path, body, headers), key)
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pars.doctor.metrics_page import MetricsPage
from pars.errors import ParsError
from pars.prove.live.bench_plan import GATEWAY, BenchOptions, Turn
from pars.prove.live.live import Client, Headers
from pars.prove.live.watch import metrics_of
from pars.prove.workload.workload import Workload, WorkloadRequest
from pars.request.conversation import message_of
from pars.scheduling.engines import ENGINES, PRIORITY_HEADER, Engine
from pars.scheduling.trust import SECRET_HEADER
from pars.serving.engine_watch import NotTold, ask_engine

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
WARM_UP_REQUESTS, WARM_UP_TOKENS = 16, 8


@dataclass(frozen=True, slots=True)
class Target:
    """The server, and what it told of itself."""

    client: Client
    model: str
    engine: Engine
    told: str
    prefix_caching: bool
    ranks_by_itself: bool


async def prepared(options: BenchOptions, workload: Workload, client: Client) -> Target:
    """Find out about the server, and warm it up."""
    models = (await client.json("/v1/models")).get("data") or [{}]
    model = options.model or str(models[0].get("id", ""))
    if options.engine == "auto":
        try:
            it = await ask_engine(client.upstream)
        except NotTold as error:
            raise ParsError(f"{client.url}: {error}") from None
        engine, told = it.engine, f"the engine is {it.line}"
    else:
        engine, told = ENGINES[options.engine], f"the engine is {options.engine}, as told"
    page = await metrics_of(client)
    ours = page + "\n" + await metrics_of(client, "/pars/metrics")
    ranks = bool(MetricsPage.parse(ours).values("pars_decisions_total"))
    caching = 'enable_prefix_caching="True"' in page
    target = Target(client, model, engine, told, caching, ranks)
    _check_priorities(options, target)
    await _warm_up(options, target, workload)
    return target


def _check_priorities(options: BenchOptions, target: Target) -> None:
    """Raises ParsError where priorities would not reach the engine as they are sent."""
    ordered = [policy for policy in options.policies if policy not in (GATEWAY, "fcfs")]
    if ordered and not target.engine.takes_priority:
        raise ParsError(f"{options.url}: {target.told}; policies: {', '.join(ordered)}")
    sent = [policy for policy in options.policies if policy != GATEWAY]
    if sent and target.ranks_by_itself and not options.secret:
        raise ParsError(
            f"{options.url}: pars ranks there already and would replace the priorities of"
            f" {', '.join(sent)}: give --secret-env with its PARS_TRUSTED_SECRET, or only the"
            " policy gateway"
        )


async def _warm_up(options: BenchOptions, target: Target, workload: Workload) -> None:
    chosen = [
        replace(request, output_tokens=min(request.output_tokens, WARM_UP_TOKENS))
        for request in workload.requests[:WARM_UP_REQUESTS]
    ]
    begun_s = time.perf_counter()
    turn = Turn("warm-up", None, 0, chosen)
    answers = await asyncio.gather(
        *(
            target.client.stream(
                *request_of(options, target, turn, row), lambda: time.perf_counter() - begun_s
            )
            for row in range(len(chosen))
        )
    )
    if all(answer.error for answer in answers):
        answer = answers[0]
        raise ParsError(f"{options.url} answers no request: {answer.error}: {answer.excerpt}")


def request_of(
    options: BenchOptions, target: Target, turn: Turn, row: int
) -> tuple[str, bytes, Headers]:
    """Path, body and headers of one request, as yet without a priority."""
    request = turn.requests[row]
    path = PATHS[options.endpoint]
    body: dict[str, Any] = {"model": target.model}
    if options.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": _text(request)}]
    else:
        body["prompt"] = made_up_ids(request) if request.prompt is None else _text(request)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if options.own_eos:
        # Greedy, so that every policy gets answers of the same length.
        body |= {"max_tokens": request.max_tokens or options.own_eos_max_tokens, "temperature": 0}
    else:
        body |= {"max_tokens": request.output_tokens, "ignore_eos": True}
    if options.truncate_prompts:
        body["truncate_prompt_tokens"] = request.prompt_tokens
    if target.engine.name.startswith("vllm"):
        # No policy may profit from prompts that the one before it left in the prefix cache.
        salt = f"{turn.policy}-{turn.rate}-{turn.repeat}-{os.getpid()}"
        body["cache_salt"] = salt.replace("@", "-")  # vLLM refuses @ and / in it
    return path, json.dumps(body | dict(options.extra_body)).encode(), []


def with_priority(
    options: BenchOptions, target: Target, sent: tuple[str, bytes, Headers], key: int
) -> tuple[str, bytes, Headers]:
    """The request with its priority where the engine looks for it."""
    path, body, headers = sent
    if not target.engine.takes_priority or "priority" in options.extra_body:
        return sent
    key = -key if target.engine.larger_first else key
    if options.secret:
        headers = [*headers, (SECRET_HEADER, options.secret.encode())]
    if options.secret or target.engine.wants_header(path):
        return path, body, [*headers, (PRIORITY_HEADER, b"%d" % key)]
    return path, body[:-1] + b', "priority": %d}' % key, headers


def _text(request: WorkloadRequest) -> str:
    if request.prompt is None:
        raise ParsError(f"request {request.request_id} has no prompt: use --endpoint completions")
    return message_of(request.prompt)


def made_up_ids(request: WorkloadRequest) -> list[int]:
    """Token ids in place of a prompt that is not known: each request its own, as long as it."""
    seed = np.frombuffer(request.request_id.encode(), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    return [int(token) for token in rng.integers(10, 250, size=request.prompt_tokens)]

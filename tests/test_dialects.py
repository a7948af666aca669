"""Each router gets a request's place in its own words, and in the order that we mean."""

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateways import gateway_to
from pars.errors import ParsError
from pars.scheduling.body_fields import with_field
from pars.scheduling.dialects import DIALECTS, WINDOW_S, Standing, standing
from pars.scheduling.engines import ENGINES
from pars.scheduling.keys import EPOCH_S
from pars.serving.replies import send_json
from pars.serving.settings import Settings
from test_deploy import answers, free_port

from fake_engine import Asked, FakeEngine
from serving import eventually, serve_in_thread

NOW_S = EPOCH_S + 3e7
BEFORE_ALL_S = 5e6  # of the keys' time line: where MaxSlowdown puts express

# When it came within five minutes, and by how much its place lies behind that: in seconds, or None:
# it goes before all, by its cost.
requests = st.tuples(
    st.floats(0, 300),
    st.one_of(st.none(), st.floats(0, 290)),
    st.integers(1, 30_000),
)


def standing_of(request: tuple[float, float | None, int]) -> tuple[float, Standing]:
    """When it came, and where it stands."""
    came_s, behind_s, cost = request
    since_s = BEFORE_ALL_S + cost / 1000
    if behind_s is not None:
        since_s = NOW_S + came_s + behind_s - EPOCH_S
    key = int(since_s * 1e6)
    return NOW_S + came_s, standing(key, since_s, NOW_S + came_s, float(cost))


def llm_d_order(came_s: float, at: Standing) -> float:
    """llm-d's slo-deadline ordering: the time of arrival and the header's milliseconds."""
    value = DIALECTS["llm-d"].headers(at)[b"x-llm-d-slo-ttft-ms"]
    assert 0 <= int(value) < 2**31
    return came_s + int(value) / 1000


def dynamo_order(came_s: float, at: Standing) -> float:
    """Dynamo's fcfs: the time of arrival, less the priority in seconds; below 0 it counts as 0."""
    value = DIALECTS["dynamo"].headers(at)[b"x-dynamo-request-priority"]
    return came_s - max(0, int(value))


def tensorrt_order(came_s: float, at: Standing) -> float:
    """TensorRT-LLM's priority queue: larger first, of float32 from 0 to 1."""
    fraction = DIALECTS["tensorrt-llm"].fields(at)["priority",]
    assert 0 <= fraction <= 1
    return -struct.unpack("f", struct.pack("f", fraction))[0]


@pytest.mark.parametrize(
    ("order", "resolution_s"), [(llm_d_order, 0.001), (dynamo_order, 1.0), (tensorrt_order, 0.11)]
)
@given(a=requests, b=requests)
def test_who_goes_first_goes_first_there(order: Any, resolution_s: float, a: Any, b: Any) -> None:
    """As far as the router can tell: by its resolution in time."""
    (came_a, at_a), (came_b, at_b) = standing_of(a), standing_of(b)
    if at_a.is_before_all != at_b.is_before_all:
        first, second = (a, b) if at_a.is_before_all else (b, a)
        assert order(*standing_of(first)) < order(*standing_of(second))
    elif at_a.is_before_all and order is not tensorrt_order:
        # In order of cost, and of age: a thousand tokens are a second.
        if came_a + a[2] / 1000 < came_b + b[2] / 1000 - 2 * resolution_s:
            assert order(came_a, at_a) < order(came_b, at_b) + resolution_s
    elif at_a.is_before_all:
        assert (order(came_a, at_a) < order(came_b, at_b)) == (a[2] < b[2])
    elif at_a.since_epoch_s < at_b.since_epoch_s - 2 * resolution_s:
        assert order(came_a, at_a) < order(came_b, at_b)


def test_what_goes_before_all_passes_what_came_in_the_window_and_no_more() -> None:
    """An old request is not passed for ever."""
    old = standing(0, NOW_S - EPOCH_S, NOW_S, 100.0)
    late_s = NOW_S + 2 * WINDOW_S
    late = standing(0, BEFORE_ALL_S, late_s, 100.0)

    assert llm_d_order(NOW_S, old) < llm_d_order(late_s, late)
    assert dynamo_order(NOW_S, old) < dynamo_order(late_s, late)


# What is sent


@contextmanager
def asked(
    folder: Path, dialect: str, body: dict[str, Any], headers: dict[str, str], **settings: Any
) -> Iterator[Asked]:
    """What stands behind the gateway gets for a client's request."""
    engine = FakeEngine()
    chosen = {"engine": "auto", "dialect": dialect, "state": "none", **settings}
    with engine.served() as up, gateway_to(up, folder, settings=chosen) as (url, _):
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, trust_env=False)
        assert answer.status_code == 200
        yield next(it for it in engine.asked if it.method == "POST")


FORGED = {
    "X-Vllm-Priority": "-999",
    "x_vllm_priority": "-999",
    "x-llm-d-slo-ttft-ms": "0",
    "x-slo-ttft-ms": "0",
    "x-dynamo-request-priority": "999",
    "x-dynamo-request-strict-priority": "9",
    "x_dynamo_request_strict_priority": "9",
}
FORGED_BODY = {
    "prompt": "x" * 40,
    "priority": -999,
    "extra_body": {"priority": -999, "kept": [1]},
    "nvext": {"agent_hints": {"osl": 1}, "kept": [1]},
}
CARRIERS = {
    "vllm-router": {"x-vllm-priority"},
    "smg": {"x-vllm-priority"},
    "ray": {"x-vllm-priority"},
    "litellm": set(),
    "llm-d": {"x-llm-d-slo-ttft-ms", "x-vllm-priority"},
    "dynamo": {"x-dynamo-request-priority", "x-dynamo-request-strict-priority"},
    "tensorrt-llm": set(),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_says_the_place_where_it_is_read_and_a_client_nowhere(
    tmp_path: Path, dialect: str
) -> None:
    """The client's own are gone from headers, and from the fields that carry it in the body."""
    with asked(tmp_path, dialect, FORGED_BODY, FORGED) as got:
        names = [name.decode() for name, _ in got.headers]
        sent = {it.lower().replace("_", "-") for it in FORGED}
        assert sorted(it for it in names if it.replace("_", "-") in sent) == sorted(
            CARRIERS[dialect]
        )
        values = [int(value) for name, value in got.headers if name.decode() in sent]
        assert not {-999, 999, 9} & set(values)
        body = got.json()
        if dialect in ("vllm-router", "smg", "ray"):
            assert body["priority"] == values[0] > 0
        elif dialect == "tensorrt-llm":
            assert 0 < body["priority"] < 1
        else:
            assert "priority" not in body
        if dialect == "litellm":
            assert body["extra_body"]["priority"] > 0
            assert body["extra_body"]["kept"] == [1]
        if dialect == "dynamo":
            assert body["nvext"] == {"agent_hints": {"osl": 16}, "kept": [1]}


def test_a_router_before_sglang_gets_its_priorities_the_other_way_round(tmp_path: Path) -> None:
    """`--dialect smg --engine sglang`: larger first."""
    with asked(tmp_path, "smg", {"prompt": "x"}, {}, engine="sglang") as got:
        assert got.json()["priority"] < 0


@pytest.mark.parametrize("engine", ["vllm", "none"])
def test_a_dialect_with_its_own_scale_takes_no_engine(engine: str) -> None:
    with pytest.raises(ParsError, match="dialect: llm-d says where the priority goes"):
        Settings(dialect="llm-d", engine=engine)


def test_a_dialect_takes_no_tenants_whose_shares_are_no_time(tmp_path: Path) -> None:
    """Virtual time says nothing to a router that orders by arrival."""
    with pytest.raises(ParsError, match="orders by arrival"):
        Settings(dialect="dynamo", tenants=str(tmp_path / "tenants.json"))


def test_a_field_within_an_object_is_set_and_the_rest_stays() -> None:
    """Byte for byte outside of the object; what is no object gives way; the last of two counts."""
    path = ("extra_body", "priority")

    assert with_field(b'{"a": 1.0, "b":2}', path, 7) == (
        b'{"a": 1.0, "b":2,"extra_body":{"priority": 7}}'
    )
    assert with_field(b'{"extra_body": 3, "a" : 1e2}', path, 7) == (
        b'{"extra_body": {"priority": 7}, "a" : 1e2}'
    )
    twice = json.loads(with_field(b'{"extra\\u005fbody": {"x": 1}, "extra_body": {}}', path, 7))
    assert twice == {"extra_body": {"priority": 7}}
    large = json.dumps({"prompt": "x" * 100_000, "extra_body": {"x": 1}}).encode()
    assert json.loads(with_field(large, path, 7))["extra_body"] == {"x": 1, "priority": 7}
    with pytest.raises(ValueError, match="not a JSON object"):
        with_field(b"[1]", path, 7)


def test_only_what_passes_the_engines_own_number_on_asks_for_the_engine() -> None:
    """The others have a scale of their own."""
    told = {it.name for it in DIALECTS.values() if it.says_engine}

    assert told == {"vllm-router", "smg", "ray", "litellm"}
    assert DIALECTS["smg"].engine(ENGINES["sglang"]).larger_first


# The real routers, where PARS_ROUTERS names a folder that has them in bin/


def command(router: str, upstream: str, port: int, folder: Path) -> list[str]:
    program = str(Path(os.environ["PARS_ROUTERS"]) / "bin" / router)
    if router == "litellm":
        model = {"model": "hosted_vllm/m", "api_base": f"{upstream}/v1", "api_key": "k"}
        config = {"model_list": [{"model_name": "m", "litellm_params": model}]}
        (folder / "litellm.yaml").write_text(json.dumps(config))
        return [program, "--config", str(folder / "litellm.yaml"), "--port", str(port)]
    launch = [program, "launch"] if router == "smg" else [program]
    more = ["--backend", "vllm"] if router == "smg" else []
    options = ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    more += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*launch, "--worker-urls", upstream, *options, *more]


def with_models(engine: FakeEngine) -> Any:
    """The engine, which also names its model: smg sends nothing to one that does not."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/models":
            await send_json(send, 200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        else:
            await engine(scope, receive, send)

    return app


@pytest.mark.deploy
@pytest.mark.parametrize("router", ["vllm-router", "smg", "litellm"])
def test_a_real_router_hands_the_place_on(tmp_path: Path, router: str) -> None:
    """The engine behind it reads our priority, in the header or the body."""
    if "PARS_ROUTERS" not in os.environ:
        pytest.skip("NOT TESTED: PARS_ROUTERS names no folder with the routers")
    engine, port, key = FakeEngine(), free_port(), "sk-" + "0a" * 16
    environment = os.environ | {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with serve_in_thread(with_models(engine)) as upstream, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command(router, upstream, port, tmp_path), env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            health = f"{url}/health/liveliness" if router == "litellm" else f"{url}/health"
            for _ in range(3):  # litellm takes a while
                try:
                    eventually(lambda: answers(health))
                    break
                except AssertionError:
                    continue
            settings = {"engine": "auto", "dialect": router, "state": "none"}
            with gateway_to(url, tmp_path, settings=settings) as (gateway, _):
                body = {
                    "model": "m",
                    "messages": [{"role": "user", "content": "x"}],
                    "priority": -9,
                }
                asking = {"json": body, "headers": {"Authorization": f"Bearer {key}"}}

                def is_answered() -> bool:  # a router has to find its engine first
                    path = "/v1/chat/completions"
                    answer = httpx.post(gateway + path, timeout=60, trust_env=False, **asking)
                    return answer.status_code == 200

                eventually(is_answered)
        finally:
            process.terminate()
            process.wait(30)
    got = [it for it in engine.asked if it.path.endswith("/chat/completions")][-1]
    assert got.priority > 1_000_000, got

"""
How each engine takes a priority, and what its own pages tell of that.

    vllm              header X-Vllm-Priority (0.28 and later), smaller first
    vllm-body         top-level `priority` in the body (earlier versions), smaller first
    sglang            `priority` in the body, larger first (SGLang's default)
    sglang-low-first  `priority` in the body, smaller first (--schedule-low-priority-values-first)
    none              takes no priority: requests pass through unscored

    told = told_by_server_info(page)         # of SGLang; told_by_version of vLLM
    told.engine.name, told.warnings          # "sglang", ("SGLang preempts by priority: ...",)
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pars.scheduling.dialects import Dialect

PRIORITY_HEADER = b"x-vllm-priority"

# vLLM reads the header on these paths only; on its other generating paths the body counts.
HEADER_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
)
FIRST_VERSION_WITH_HEADER = (0, 28)


@dataclass(frozen=True, slots=True)
class Engine:
    """
    Where an engine looks for a request's priority, and which way round.

    Attributes:
        dialect: Of what stands between us and it; that then says where the priority goes.
        is_preempting: It stops a running request for one of a better priority, as it is started.
    """

    name: str
    takes_header: bool = False
    larger_first: bool = False
    takes_priority: bool = True
    dialect: "Dialect | None" = None
    is_preempting: bool = field(default=False, compare=False)

    def wants_header(self, path: str) -> bool:
        """Whether the priority goes into the header rather than the body on this path."""
        return self.takes_header and path.endswith(HEADER_PATHS)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("vllm", takes_header=True),
        Engine("vllm-body"),
        Engine("sglang", larger_first=True),
        Engine("sglang-low-first"),
        Engine("none", takes_priority=False),
    )
}

NONE = ENGINES["none"]


def vllm_engine(version: str | None) -> Engine:
    """
    The kind of vLLM by its version; one that cannot be read (a source build) counts as new.

    vLLM's development builds call themselves 0.1.dev… or 0.0.…; no release that old has V1.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    is_old = (0, 2) <= release < FIRST_VERSION_WITH_HEADER
    return ENGINES["vllm-body" if is_old else "vllm"]


@dataclass(frozen=True, slots=True)
class EngineTold:
    """
    What an engine's pages tell.

    Attributes:
        engine: How it takes priorities.
        told: What it is, for people.
        warnings: What is to be changed there, each with how.
        release: Another one after an update or a start, as far as the pages tell.
        slots: Requests that it answers at once, where it tells.
        most_slots: Or no more than these: its memory may be full before.
    """

    engine: Engine
    told: str
    warnings: tuple[str, ...] = ()
    release: str = ""
    slots: int | None = None
    most_slots: int | None = None

    @property
    def line(self) -> str:
        """What it is and how priorities are set for it, for people."""
        return f"{self.told}: {way_of(self.engine)}" if self.engine.takes_priority else self.told


FOREIGN = EngineTold(
    NONE,
    "neither vLLM nor SGLang as far as it tells: no priorities are set (--engine names it if that"
    " is wrong)",
    release="foreign",
)

# SGLang takes a running request out for one that is ahead by more than so many units. Ours are
# microseconds of waiting: with its default of 10 every arrival would throw others out.
LEAST_PREEMPTION_THRESHOLD = 10**12
# Its policies that order by priority; the others do not look at it.
SGLANG_POLICIES = ("fcfs", "lof", "priority")


def told_by_version(page: Mapping[str, Any]) -> EngineTold | None:
    """What vLLM's /version tells; None where it is not vLLM's."""
    if "version" not in page:
        return None
    version = str(page["version"])
    engine = vllm_engine(version)
    return EngineTold(engine, f"vLLM {version}", release=f"vLLM {version}")


def told_by_server_info(page: Mapping[str, Any]) -> EngineTold | None:
    """What SGLang's /server_info tells, its scheduling included; None where it is not SGLang's."""
    if "schedule_low_priority_values_first" not in page:
        return None
    name = f"SGLang {page.get('version', '')}".strip()
    release = f"{name} {page.get('startup_time', '')}"
    if not page.get("enable_priority_scheduling"):
        told = f"{name} WITHOUT --enable-priority-scheduling: no priorities are set"
        change = "SGLang orders by priority only with --enable-priority-scheduling"
        return EngineTold(NONE, told, (change,), release, most_slots=_sglang_slots(page))
    low_first = page["schedule_low_priority_values_first"]
    engine = ENGINES["sglang-low-first" if low_first else "sglang"]
    engine = replace(engine, is_preempting=_preempts(page))
    warnings = tuple(_sglang_warnings(page))
    return EngineTold(engine, name, warnings, release, most_slots=_sglang_slots(page))


def told_by_props(page: Mapping[str, Any]) -> EngineTold | None:
    """What llama.cpp's /props tells; None where it is not llama.cpp's."""
    slots = _count(page, "total_slots")
    if slots is None:
        return None
    build = str(page.get("build_info", "")).strip()
    told = f"llama.cpp {build}".strip() + f" with {slots} slots, which takes no priorities"
    return EngineTold(NONE, told, release=f"llama.cpp {build}", slots=slots)


def vllm_slots(page: Mapping[str, Any]) -> int | None:
    """
    What vLLM's /server_info?config_format=json tells of --max-num-seqs, over all its engines.

    It has that page only with VLLM_SERVER_DEV_MODE=1; no other page tells.
    """
    config = page.get("vllm_config")
    parts = config if isinstance(config, Mapping) else {}
    scheduler, parallel = parts.get("scheduler_config"), parts.get("parallel_config")
    num = _count(scheduler, "max_num_seqs")
    return None if num is None else num * (_count(parallel, "data_parallel_size") or 1)


def _sglang_slots(page: Mapping[str, Any]) -> int | None:
    """Of each of its schedulers what it came to with its memory; else what it was started with."""
    states = page.get("internal_states")
    each = [_count(it, "effective_max_running_requests_per_dp") for it in states or ()]
    known = [it for it in each if it is not None]
    return sum(known) if known else _count(page, "max_running_requests")


def _count(page: Any, name: str) -> int | None:
    """A whole number of 1 or more."""
    value = page.get(name) if isinstance(page, Mapping) else None
    return value if type(value) is int and value >= 1 else None


def _preempts(page: Mapping[str, Any]) -> bool:
    """Whether a SGLang stops running requests for those of better priorities."""
    threshold = page.get("priority_scheduling_preemption_threshold")
    is_out_of_reach = isinstance(threshold, int) and threshold >= LEAST_PREEMPTION_THRESHOLD
    # A page of a version without preemption has no such field.
    return page.get("disable_priority_preemption") is False and not is_out_of_reach


def _sglang_warnings(page: Mapping[str, Any]) -> list[str]:
    warnings = []
    if _preempts(page):
        warnings.append(
            "SGLang preempts by priority: running requests are thrown out and computed again for"
            " each one that is expected shorter; start it with --disable-priority-preemption"
        )
    # A version that does not know default_priority_value has no metrics for each priority either.
    if page.get("enable_metrics") and "default_priority_value" in page:
        warnings.append(
            "SGLang keeps some 190 metrics for each value of a priority, and each request has its"
            " own: its memory and its /metrics grow with every request; start it without"
            " --enable-metrics"
        )
    policy = page.get("schedule_policy")
    if isinstance(policy, str) and policy not in SGLANG_POLICIES:
        warnings.append(
            f"SGLang's --schedule-policy {policy} does not look at priorities; start it with"
            " --schedule-policy fcfs"
        )
    return warnings


def way_of(engine: Engine) -> str:
    """Where an engine looks for a priority and which way round, for people."""
    if engine.dialect is not None:
        return f"priorities in {engine.dialect.carrier}; the queue is {engine.dialect.queue}"
    where = "in the header X-Vllm-Priority" if engine.takes_header else "in the body"
    return f"priorities {where}, {'larger' if engine.larger_first else 'smaller'} first"


def contradictions(named: Engine, told: EngineTold) -> list[str]:
    """What is wrong with taking an engine for `named` that tells `told` of itself."""
    if told is FOREIGN or not named.takes_priority or told.engine == named:
        return []
    if named.dialect is not None and not named.dialect.says_engine:
        return []
    right = f"PARS_ENGINE={told.engine.name} or auto"
    if named.dialect is not None:
        right = f"PARS_ENGINE={told.engine.name}"
    if not told.engine.takes_priority:
        return [f"it is taken for {named.name}, but it is {told.told}"]
    if told.engine.larger_first != named.larger_first:
        return [
            f"the order is REVERSED, long requests go first: it is taken for {named.name}, but it"
            f" is {told.line}; {right}"
        ]
    if named.takes_header:
        return [
            f"it looks at no header, so all have the same priority: it is taken for {named.name},"
            f" but it is {told.line}; {right}"
        ]
    return []  # a body that any of them reads


def common(told: Sequence[EngineTold]) -> EngineTold:
    """
    What suits all of several servers behind one address, which have told this.

    A foreign answer among others is that of something before them, such as a load balancer's 404.

    Args:
        told: At least one; the latest last.
    """
    told = [it for it in told if it is not FOREIGN] or told
    engines = {it.engine for it in told}
    is_preempting = any(it.engine.is_preempting for it in told)
    if len(engines) == 1:
        engine = replace(told[-1].engine, is_preempting=is_preempting)
        return replace(told[-1], engine=engine) if is_preempting else told[-1]
    names = "; ".join(dict.fromkeys(it.told for it in told))
    warnings = tuple(dict.fromkeys(warning for it in told for warning in it.warnings))
    several = f"several servers that differ ({names})"
    if len({it.larger_first for it in engines}) == 1 and NONE not in engines:
        engine = replace(ENGINES["vllm-body"], is_preempting=is_preempting)
        return EngineTold(engine, several, warnings)
    change = (
        "the servers behind one address take priorities in different ways, so none are set: give"
        " each kind a gateway of its own"
    )
    return EngineTold(NONE, f"{several}: no priorities are set", (*warnings, change))


def engine_of_host() -> Engine:
    """The engine of the vLLM in whose process this runs."""
    return vllm_engine(getattr(sys.modules.get("vllm"), "__version__", None))


def scheduling_policy(app: Any) -> str | None:
    """
    vLLM's scheduling policy ("fcfs", "priority"), read off its FastAPI app; None if unknown.

    A server started without `--scheduling-policy priority` takes every priority with a 200 and
    ignores it, and no endpoint tells.
    """
    state = getattr(app, "state", None)
    config = getattr(getattr(state, "vllm_config", None), "scheduler_config", None)
    policy = getattr(config, "policy", None)
    if policy is None:
        policy = getattr(getattr(state, "args", None), "scheduling_policy", None)
    return None if policy is None else str(getattr(policy, "value", policy))

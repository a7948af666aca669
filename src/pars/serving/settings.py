"""
Settings of the serve lane, each declared once: name, default, check, help, option.

Inside vLLM, which builds a middleware from its app alone, only the environment reaches it; so every
setting has a variable, PARS_ and its name here. The options of `pars gateway` (`cli.serve`) and the
table in docs/serving.md are made from these declarations. `pars --help` reads them too: what is
heavy (numpy, onnxruntime) is imported where it is used.

(The file is long because each setting stands in it, and nowhere else.)
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pars.errors import DataError, ParsError
from pars.scheduling.dialects import DIALECTS, DIRECT
from pars.scheduling.engines import ENGINES, Engine
from pars.scheduling.policies.fair_tenants import FairTenants
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN, MaxSlowdown
from pars.scheduling.policies.policy import Policy
from pars.scheduling.policies.shortest_first import ShortestFirst
from pars.scheduling.tenants import Tenants
from pars.scheduling.trust import Trust, read_key_offsets_s, read_proxies

if TYPE_CHECKING:
    from pars.outcomes.drift import DriftSettings
    from pars.outcomes.holdout import Schedule
    from pars.outcomes.limits import OutcomeLimits

PREFIX = "PARS_"
NO_OVERTAKE_BOUND = -math.inf  # none is given
BOOLEANS = {"1": True, "true": True, "yes": True, "on": True}
BOOLEANS |= {"0": False, "false": False, "no": False, "off": False}

# What Kubernetes sets in every container for a service called "pars" or "pars-…".
KUBERNETES = re.compile(
    r"PARS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    One setting, as declared in `Settings`.

    Attributes:
        name: Its field's.
        help: What it does; plain Markdown.
        shown: The default as people write it; empty: the value itself.
        least: Numbers below it, infinity and "not a number" are refused; None: checked elsewhere.
        choices: The values there are; empty: any.
        metavar: Of its option, where that is no choice.
    """

    name: str = ""
    default: Any = None
    help: str
    shown: str = ""
    least: float | None = None
    choices: tuple[Any, ...] = ()
    metavar: str | None = None

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper()

    @property
    def option(self) -> str:
        """Its option on the command line, where it has one."""
        return "--" + self.name.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default for people; empty where there is none."""
        default = int(self.default) if isinstance(self.default, bool) else self.default
        return self.shown or str(default)

    def problem(self, value: Any) -> str:
        """What is wrong with `value`, and what would be right; empty: nothing."""
        if self.least is not None and not self.least <= value < math.inf:
            return f"must be {self.least:g} or more, not {value}"
        if not self.choices or value in self.choices:
            return ""
        choices = [str(choice) for choice in self.choices]
        return f"{value!r} is not one of {', '.join(choices)}" + _nearest(str(value), choices)


def _setting(default: Any, help: str, *, is_secret: bool = False, **declared: Any) -> Any:
    it = Setting(default=default, help=help, **declared)
    return field(default=default, repr=not is_secret, metadata={"setting": it})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may set."""

    ranker: str = _setting(
        "",
        "ranker folder, or `module:object` with `score(list[str])`: one signal more for the ranker"
        " that learns; by default the bundled one orders until that has learned to; `none`: first"
        " come, first served until then",
        shown="the bundled one",
        metavar="RANKER",
    )
    learn: str = _setting(
        "on",
        "`on`: learn from each answer, and order by that once it is better than chance; `off`:"
        " order by the ranker alone",
        choices=("on", "off"),
    )
    state: str = _setting(
        "",
        "folder for what is learned, shared by all processes that use it; no text is kept. `none`:"
        " in memory only",
        shown="~/.local/state/pars",
        metavar="DIR",
    )
    engine: str = _setting(
        "auto",
        "how the engine takes priorities; `auto`: it is asked",
        choices=("auto", *ENGINES),
    )
    dialect: str = _setting(
        DIRECT,
        "gateway only: what stands between it and the engine, and so where the priority goes",
        choices=(DIRECT, *DIALECTS),
    )
    hold: str = _setting(
        "auto",
        "gateway only: `on`: requests wait here, in order, until the engine has room; `auto`: where"
        " the engine takes no priority",
        choices=("auto", "on", "off"),
    )
    slots: int = _setting(
        0,
        "requests that the engine behind a held queue answers at once; 0: as it tells, or as seen",
        shown="as it tells, or as seen",
        least=0,
        metavar="N",
    )
    max_held: int = _setting(10_000, "requests that may be held; then 429", least=1)
    max_held_bytes: int = _setting(
        256 << 20, "bytes of the bodies of all that are held; then 429", shown="256 MiB", least=1
    )
    max_held_s: float = _setting(
        1800.0, "seconds that a request may be held; then 503", shown="1800", least=1
    )
    max_slowdown: float = _setting(
        DEFAULT_MAX_SLOWDOWN,
        "R: no request waits more than R times what first come, first served would have made it"
        " wait. `1` is first come, first served, `inf` shortest first",
        metavar="R",
    )
    shared_engine: bool = _setting(
        False,
        "1: other gateways, or several API servers of one vLLM, send to the same engine; each then"
        " keeps R for its own part of the work",
    )
    max_overtake_s: float = _setting(
        NO_OVERTAKE_BOUND,
        "T, in place of R: a request can be overtaken only by requests that come within this time"
        " after it. `0` is first come, first served, `inf` shortest first",
        shown="none",
        metavar="SECONDS",
    )
    tenants: str = _setting(
        "",
        "file of tenants (TOML, or JSON): API keys by SHA-256, or values of a header, and weights."
        " The engine's work is shared by weight, and R holds inside each tenant",
        metavar="FILE",
    )
    holdout: str = _setting(
        "",
        "share of the time, such as `5%`, in windows of five minutes, in which the queue is first"
        " come, first served; what the order is worth is told beside that, with an interval",
        metavar="SHARE",
    )
    priority_bits: int = _setting(64, "or 32", choices=(32, 64))
    budget_ms: float = _setting(
        20.0,
        "a ranker that finishes no batch for this long is not waited for: the request goes on"
        " unscored. 0: no scoring",
        shown="20",
        least=0,
    )
    max_wait_ms: float = _setting(
        500.0,
        "nor is a score waited for longer than this, in a burst. Equal to the budget: a strict"
        " limit",
        shown="500",
        least=0,
    )
    obey_limits: bool = _setting(
        True,
        "0: `max_tokens`, `min_tokens` and `ignore_eos` do not count, and an answer that reaches"
        " its limit has ended by itself. For benchmarks that impose lengths by `max_tokens`, which"
        " would give the length away",
    )
    reload_s: float = _setting(
        10.0,
        "how often the ranker's folder is looked at for a change; 0: never",
        shown="10",
        least=0,
    )
    max_body_bytes: int = _setting(
        1 << 20, "bytes of a body held to read it", shown="1 MiB", least=1
    )
    max_buffered_bytes: int = _setting(
        64 << 20, "bytes of all bodies held at once", shown="64 MiB", least=1
    )
    max_prompts: int = _setting(
        16, "prompts of one request that are scored; the others get their mean", least=1
    )
    max_prompt_chars: int = _setting(
        8192,
        "characters of a prompt that an outcome keeps: of a longer one three quarters from its"
        " start and one from its end, which is where rankers read",
        least=1,
    )
    max_queued_prompts: int = _setting(1024, "prompts that wait for the ranker", least=1)
    trusted_proxies: str = _setting("", "networks, `10.0.0.0/8, ::1`")
    trusted_secret: str = _setting(
        "", "a caller that sends it in `X-Pars-Secret` is trusted", is_secret=True
    )
    key_offsets: str = _setting("", "file: SHA-256 of an API key → seconds")
    admin_key: str = _setting(
        "",
        "gateway only: who sends it may change how it serves (`pars ctl`); empty: nobody",
        is_secret=True,
    )
    api_keys: str = _setting(
        "",
        "gateway only: keys that clients must send, separated by commas",
        is_secret=True,
    )
    upstream_api_key: str = _setting(
        "",
        "gateway only: the upstream's own API key, sent as `Authorization: Bearer` in place of the"
        " client's key",
        is_secret=True,
    )
    upstream_api_key_file: str = _setting(
        "",
        "gateway only: a file with the upstream's own API key, as PARS_UPSTREAM_API_KEY",
        metavar="FILE",
    )
    upstream_ca_file: str = _setting(
        "",
        "gateway only: PEM file of the authorities to trust for an https upstream; empty: the"
        " system's",
        metavar="FILE",
    )
    outcomes: str = _setting(
        "",
        "folder for the outcome of each request; empty: nothing is kept",
        metavar="DIR",
    )
    outcome_prompts: bool = _setting(False, "1: keep the scored texts too")
    outcome_retention_s: float = _setting(
        7 * 86_400.0, "a text is deleted when it is that old", shown="604800"
    )
    outcome_max_bytes: int = _setting(
        256 << 20, "bytes of the folder; beyond it the oldest outcomes go", shown="256 MiB"
    )
    outcome_redact: str = _setting(
        "", "`package.module:function`, called with each text before it is written"
    )
    log_format: str = _setting(
        "text",
        "how `pars gateway` and `pars serve` log: `text`, or `json`: an object a line; inside vLLM"
        " its own logging counts",
        choices=("text", "json"),
    )
    otel: bool = _setting(
        False,
        "1: say on OpenTelemetry's spans what was expected of a request, its class and its wait",
    )
    drift: bool = _setting(True, "0: do not compare the ranker with the answers")
    drift_limit: float = _setting(
        0.0,
        "tau-b below which the ranker is disabled; -1: only measure",
        shown="0",
    )
    drift_window: int = _setting(1000, "the last so many answers count", least=3)

    def __post_init__(self) -> None:
        for it in declared_settings():
            if problem := it.problem(getattr(self, it.name)):
                raise ParsError(f"{it.name}: {problem}")
        dialect = DIALECTS.get(self.dialect)
        if dialect is not None and not dialect.says_engine and self.tenants:
            raise ParsError(
                f"dialect: {self.dialect} orders by arrival, which tenants' shares are not: leave"
                " one of them out"
            )
        may_name = dialect is None or (dialect.says_engine and self.engine != "none")
        if self.engine != "auto" and not may_name:
            raise ParsError(
                f"dialect: {self.dialect} says where the priority goes: leave engine at auto,"
                f" not {self.engine}"
            )
        self.policy()
        self.holdout_schedule()
        self.outcome_limits()
        self.drift_settings()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """
        Settings from PARS_* variables; `overrides` that are not None win over them.

        Raises:
            ParsError: a value is not what its setting must be; the variable or option is named.
        """
        values: dict[str, Any] = {}
        for it in declared_settings():
            if text := environ.get(it.variable, "").strip():
                values[it.name] = _parsed(it.variable, text, type(it.default))
        chosen = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**values | chosen)
        except ParsError as error:
            message = str(error)
            for it in declared_settings():
                if re.match(rf"{it.name}\b", message):
                    given = it.option if it.name in chosen else it.variable
                    message = given + message.removeprefix(it.name)
            raise ParsError(message) from None

    @property
    def ranker_folder(self) -> Path:
        """The folder, or module:object, of the ranker to load; of `none` too there is one."""
        from pars.ranking.ranker import bundled_ranker

        return Path(self.ranker) if self.ranker not in ("", "none") else bundled_ranker()

    @property
    def state_folder(self) -> Path | None:
        """Where what is learned lies; None: nowhere."""
        from pars.ranking.online.state import default_folder

        if self.learn == "off" or self.state == "none":
            return None
        return Path(self.state) if self.state else default_folder()

    @property
    def client_keys(self) -> list[str]:
        """The API keys of which clients must send one; none: no key is asked for."""
        return [key.strip() for key in self.api_keys.split(",") if key.strip()]

    @property
    def upstream_key(self) -> str:
        """
        The key that the upstream wants; empty: none.

        Raises:
            ParsError: its file cannot be read, or is empty.
        """
        if not self.upstream_api_key_file:
            return self.upstream_api_key
        if self.upstream_api_key:
            raise ParsError("upstream_api_key_file: upstream_api_key is set too: unset one of them")
        return _one_line("upstream_api_key_file", Path(self.upstream_api_key_file))

    @property
    def named_engine(self) -> Engine | None:
        """How the upstream takes priorities, where the operator says it; None: it is asked."""
        named = None if self.engine == "auto" else ENGINES[self.engine]
        return named if self.dialect == DIRECT else DIALECTS[self.dialect].engine(named)

    @property
    def goes_by_slowdown(self) -> bool:
        """Whether the bound on waiting is a ratio, and not seconds of overtaking."""
        return self.max_overtake_s == NO_OVERTAKE_BOUND

    def policy(self) -> Policy:
        """The policy of one queue: a share of the work goes first, or seconds of overtaking."""
        if self.goes_by_slowdown:
            return self.by_tenant(
                MaxSlowdown(
                    self.max_slowdown, shares_engine=self.shared_engine, bits=self.priority_bits
                )
            )
        return self.by_tenant(ShortestFirst(self.max_overtake_s, bits=self.priority_bits))

    def by_tenant(self, policy: Policy) -> Policy:
        """
        The policy inside each tenant, where there are tenants; else itself.

        Raises:
            ParsError: it is not one in shares, or the file of tenants is not what it must be.
        """
        tenants = self.read_tenants()
        if tenants is None:
            return policy
        if not isinstance(policy, MaxSlowdown):
            raise ParsError(
                "tenants: share by weight under a bound in shares: want max_slowdown, and no"
                f" max_overtake_s, not {policy.in_words}"
            )
        return FairTenants(tenants.weights, policy, bits=self.priority_bits)

    def read_tenants(self) -> Tenants | None:
        """
        The tenants of the file; None: there is none.

        Raises:
            ParsError: it is not what it must be.
        """
        if not self.tenants:
            return None
        try:
            return Tenants.read(Path(self.tenants))
        except DataError as error:
            raise ParsError(f"tenants: {error}") from None

    def holdout_schedule(self) -> "Schedule | None":
        """
        Which windows of time are held out; None: none are.

        Raises:
            ParsError: `holdout` is no share.
        """
        if not self.holdout:
            return None
        from pars.outcomes.holdout import Schedule

        number, percent = self.holdout.removesuffix("%").strip(), self.holdout.endswith("%")
        try:
            share = float(number) / (100 if percent else 1)
        except ValueError:
            share = math.nan
        if not 0.001 <= share <= 0.5:
            raise ParsError(
                f"holdout: want a share from 0.1% to 50%, such as 5%, not {self.holdout}"
            )
        return Schedule(share)

    def outcome_limits(self) -> "OutcomeLimits":
        """What may be kept of finished requests; imports the redaction hook."""
        from pars.outcomes.limits import OutcomeLimits, load_redact

        return OutcomeLimits(
            max_bytes=self.outcome_max_bytes,
            keeps_prompts=self.outcome_prompts,
            retention_s=self.outcome_retention_s,
            redact=load_redact(self.outcome_redact) if self.outcome_redact else None,
        )

    def drift_settings(self) -> "DriftSettings":
        """When the ranker counts as worse than useless."""
        from pars.outcomes.drift import DriftSettings

        usual = DriftSettings()
        try:
            return DriftSettings(
                limit=self.drift_limit,
                window=self.drift_window,
                min_answers=min(usual.min_answers, self.drift_window),
                judge_every=min(usual.judge_every, self.drift_window),
            )
        except ParsError as error:
            raise ParsError(f"drift_{error}") from None

    def trust(self) -> Trust:
        """Who may move a request; reads the file of key offsets."""
        return Trust(
            proxies=read_proxies(self.trusted_proxies),
            secret=self.trusted_secret.encode(),
            key_offsets_s=read_key_offsets_s(Path(self.key_offsets)) if self.key_offsets else {},
        )


def declared_settings() -> list[Setting]:
    """All settings, in the order in which people read them."""
    return [replace(it.metadata["setting"], name=it.name) for it in fields(Settings)]


def settings_table() -> str:
    """The settings as a Markdown table: variable, default, meaning."""
    rows = [
        f"| `{it.variable}` | {it.shown_default or '–'} | {it.help} |" for it in declared_settings()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|--:|---|", *rows])


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each variable that looks like a setting and is none, with the nearest that is."""
    known = [it.variable for it in declared_settings()]
    return [
        f"{name} is not a setting of pars and has no effect{_nearest(name, known)}"
        for name in sorted(environ)
        if name.upper().startswith(PREFIX) and name not in known
        if not KUBERNETES.fullmatch(name)
    ]


def _nearest(name: str, known: Sequence[str]) -> str:
    """A question that names the nearest of `known`, empty where none is near."""
    by_rest = {it.removeprefix(PREFIX).lower(): it for it in known}  # all begin alike
    near = get_close_matches(name.upper().removeprefix(PREFIX).lower(), by_rest, n=1)
    return f": did you mean {by_rest[near[0]]}?" if near else ""


def _one_line(name: str, path: Path) -> str:
    """A secret from a file that holds it alone."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ParsError(f"{name}: {path} cannot be read: {error}") from None
    if not text or not text.isprintable() or not text.isascii():
        raise ParsError(f"{name}: {path} must hold one line, the key")
    return text


def _parsed(name: str, text: str, kind: type) -> Any:
    try:
        return BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "0 or 1", int: "a whole number", float: "a number"}[kind]
        raise ParsError(f"{name}: {text!r} is not {wanted}") from None

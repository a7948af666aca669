"""What was decided about one request: made once, before it goes on, and handed down."""

from dataclasses import dataclass

from pars.outcomes.records import Outcome
from pars.ranking.online.ranker import Guess
from pars.scheduling.demand import PROMPT_TOKEN_WORK
from pars.scheduling.dialects import Standing
from pars.scheduling.policies.policy import Place, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """
    One request's place in the engine's queue, and what it came from.

    Neither its text nor its body: a decision lives as long as the answer takes. Layers behind the
    middleware find it in the ASGI scope, under `DECISION`.

    Attributes:
        outcome: What is known of the request by now, its key among it: smaller goes first.
        priority: The key as the engine takes it.
        began_s: Of `time.perf_counter`, when its body was in.
        request_id: That the client gave, in X-Request-Id or else in the body.
        is_stream: Its answer is asked for as a stream.
        work: Of prompt and answers, as expected, in answer tokens.
        place: What the policy made of it; None: its priority was given by somebody trusted.
        policy: Whose place that is; it may have changed since.
        shadow_key: Its key, were the policy not only thought of; None: it is in force.
        tenant: Whose request it is; None: there are no tenants.
        standing: Its place in every form that an engine or a router may want; None: the priority.
        arm: Of a holdout: in order, or first come, first served; None: it has no part in one.
        guess: What the ranker that learns expected of the answer; None: none does.
    """

    outcome: Outcome
    priority: int = 0
    began_s: float
    request_id: str | None = None
    is_stream: bool = False
    work: float = 0.0
    place: Place | None = None
    policy: Policy | None = None
    shadow_key: int | None = None
    tenant: str | None = None
    standing: Standing | None = None
    arm: str | None = None
    guess: Guess | None = None

    def true_work(self, outcome: Outcome) -> float:
        """What it took, in answer tokens."""
        prompt_tokens = outcome.known_prompt_tokens or 0.0
        return (outcome.answer_tokens or 0) + PROMPT_TOKEN_WORK * prompt_tokens


DECISION = "pars.decision"

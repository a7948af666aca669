"""
Decides about each request, once: reads it, has its answer's length predicted, and gives it a place.

    decider = Decider(settings, Predictor(settings, metrics), Placing(settings, metrics), metrics)
    decision = await decider.decide(engine, path, headers, peer, body)

Every door does the same by it: the middleware, and whoever else carries requests to an engine.
"""

import time
from collections.abc import Callable

from pars.outcomes.decision import Decision
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome
from pars.outcomes.writer import OutcomeWriter
from pars.request.prompts import head_and_tail
from pars.scheduling.demand import Demand, demand_of
from pars.scheduling.dialects import Standing, standing
from pars.scheduling.engines import Engine
from pars.scheduling.keys import Keys
from pars.scheduling.trust import Headers
from pars.serving.asked import MAX_NAME_CHARS, Asked, Body, Shown, read_asked
from pars.serving.placing import Placing
from pars.serving.prediction import Prediction, Predictor
from pars.serving.settings import Settings

REQUEST_ID = b"x-request-id"


class Decider:
    """
    What one server process decides by. On one event loop.

    Args:
        writer: Who keeps outcomes, and tells equal texts apart without keeping them.
        clock: Unix time.
    """

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        placing: Placing,
        metrics: ServeMetrics,
        *,
        writer: OutcomeWriter | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._placing = placing
        self._metrics = metrics
        self._writer = writer
        self._clock = clock
        self._trust = settings.trust()
        self._tenants = settings.read_tenants()
        self._keys = Keys(settings.priority_bits)

    def read_trust_again(self) -> str:
        """
        Read the file of key offsets once more; how many it holds, for people. Blocks.

        Raises:
            ParsError: it cannot be read; what was read before counts on.
        """
        self._trust = self._settings.trust()
        return f"{len(self._trust.key_offsets_s)} keys"

    def read_tenants_again(self) -> str:
        """
        Read the file of tenants once more; how many it holds, for people. On the event loop.

        Raises:
            ParsError: it cannot be read; what was read before counts on.
        """
        tenants = self._settings.read_tenants()
        if tenants is None:
            return "none"
        self._tenants = tenants
        self._placing.share_by(tenants.weights)
        return f"{len(tenants.weights)} tenants"

    async def decide(
        self, engine: Engine, path: str, headers: Headers, peer: str | None, body: Body
    ) -> Decision:
        """
        Decide about a request whose body is in: a slow sender gains no age by it. Never raises.

        Args:
            headers: As the client sent them, names in lower case.
            peer: The address of who opened the connection.
        """
        began_s, arrival_s = time.perf_counter(), self._clock()
        wish, tenant = self._trust.wish(headers, peer), self._tenant(headers, peer)
        asked = Asked()
        try:
            learns = self._predictor.learner is not None
            shown = Shown(signals=learns, limits=self._settings.obey_limits)
            await read_asked(asked, path, headers, body, shown)
        except Exception as error:  # nothing here may cost a request
            self._predictor.offline.warn(error)
        prediction = await self._predictor.predict(asked, is_trusted=wish.priority is not None)
        self._metrics.count(prediction.reason)
        demand = demand_of(asked.request, prediction.tokens, obey_limits=self._settings.obey_limits)
        placed = self._placing.place(engine, demand, prediction, wish, arrival_s, tenant)
        key = -placed.priority if engine.larger_first else placed.priority
        outcome = self._outcome(path, asked, prediction, arrival_s, key)
        self._metrics.decision_seconds.observe(time.perf_counter() - began_s)
        return Decision(
            outcome=outcome,
            priority=placed.priority,
            began_s=began_s,
            request_id=_named(headers) or asked.request_id,
            is_stream=asked.is_stream,
            work=demand.work,
            place=placed.place,
            policy=placed.policy,
            shadow_key=placed.shadow_key,
            tenant=tenant,
            arm=placed.arm,
            standing=self._standing(engine, placed.priority, asked, prediction, demand, arrival_s),
            guess=prediction.guess,
        )

    def _tenant(self, headers: Headers, peer: str | None) -> str | None:
        """Whose request it is; where somebody is trusted, only they may say so by a header."""
        if self._tenants is None:
            return None
        trust = self._trust
        counts = not trust.names_anyone or trust.is_trusted(headers, peer)
        return self._tenants.of(headers, header_counts=counts)

    def _standing(
        self,
        engine: Engine,
        priority: int,
        asked: Asked,
        prediction: Prediction,
        demand: Demand,
        arrival_s: float,
    ) -> Standing | None:
        """The place as a router may want it; None: there is none before the engine."""
        if engine.dialect is None:
            return None
        key = -priority if engine.larger_first else priority
        expected = prediction.tokens[0] if prediction.tokens else 0.0
        most = asked.request.max_tokens
        return standing(
            priority,
            self._keys.seconds(key),
            arrival_s,
            demand.cost,
            expected if most is None else min(expected, most),
        )

    def _outcome(
        self, path: str, asked: Asked, prediction: Prediction, arrival_s: float, key: int
    ) -> Outcome:
        """What is known of the request by now, without its texts unless they are to be kept."""
        text = prompt_key = None
        if self._writer is not None and (texts := asked.texts):
            text = head_and_tail(texts[0], self._settings.max_prompt_chars)
            prompt_key = self._writer.key_of(text)
        request = asked.request
        return Outcome(
            arrival_s=arrival_s,
            path=path[-MAX_NAME_CHARS:],
            decision=prediction.reason,
            model=asked.model,
            ranker=prediction.ranker,
            score=prediction.score,
            expected_tokens=prediction.first_tokens,
            max_tokens=request.max_tokens,
            num_answers=request.num_answers,
            num_prompts=len(request.prompts),
            key=key,
            seen_prompt_tokens=sum(prompt.num_tokens for prompt in request.prompts) or None,
            prompt_key=prompt_key,
            prompt=text if self._settings.outcome_prompts else None,
        )


def _named(headers: Headers) -> str | None:
    """The request's name, as its X-Request-Id tells it."""
    found = (value for name, value in headers if name == REQUEST_ID)
    return next((value[:MAX_NAME_CHARS].decode("latin-1") for value in found), None)

"""
Our own model of vLLM's scheduler: the same decisions, in amortised constant time a step.

    engine = FastEngine(EngineLimits())
    engine.add("a", prompt_tokens=12, output_tokens=40, priority=0, arrival_s=0.0)
    engine.step()                            # admits, prefills, and there is the first token
    engine.skip(engine.num_quiet_steps())    # 38 steps in which nothing is decided, at once
    engine.step().finished                   # ["a"]

What vLLM 0.32's `Scheduler.schedule` does, and tests/test_fast_engine.py holds against it: running
requests take their tokens first, in order of admission (one each to decode, the rest of the budget
to a prompt's next chunk); when one gets no KV block, the worst running one by (priority, arrival)
is preempted and will be computed anew; then the head of the queue is admitted while slots, budget
and blocks for its whole prompt last, and nobody behind a head that does not fit. Not modelled:
prefix caching, speculative decoding, several engines.
"""

import heapq

from pars.errors import ParsError
from pars.prove.engine.decoding import Decoding, Sequence
from pars.prove.engine.stepping import EngineLimits, Step


class FastEngine:
    """Implements `SteppedEngine`, and skips steps in which nothing is decided."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self._num_free_blocks = limits.num_blocks - 1
        self._by_id: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}  # in order of admission
        self._queue: list[tuple[int, float, str, int, Sequence]] = []  # may hold aborted ones
        self._num_queued = self._num_admitted = 0  # ever
        self._prefilling: Sequence | None = None  # at most one has part of its prompt: the last
        self._decoding = Decoding(limits.block_size)

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    @property
    def decode_load(self) -> tuple[int, int]:
        """How many requests decode, and the tokens in their KV cache before the next step."""
        return self._decoding.num_sequences, self._decoding.num_kv_tokens

    def add(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        arrival_s: float,
    ) -> None:
        self.limits.check_request(request_id, prompt_tokens, output_tokens)
        if request_id in self._by_id:
            raise ParsError(f"request {request_id}: its id is in use")
        sequence = Sequence(request_id, prompt_tokens, output_tokens, priority, arrival_s)
        self._by_id[request_id] = sequence
        self._enqueue(sequence)

    def abort(self, request_id: str) -> None:
        sequence = self._by_id.pop(request_id, None)
        if sequence is not None and request_id in self._running:
            self._release(sequence)

    def num_output_tokens(self, request_id: str) -> int:
        sequence = self._by_id.get(request_id)
        return 0 if sequence is None else self._num_outputs(sequence)

    def num_quiet_steps(self) -> int:
        """
        How many of the next steps are sure to admit, finish and preempt nobody, if none is added.

        In each of them every running request decodes one token.
        """
        decoding = self._decoding
        if self._prefilling or not decoding.num_sequences:
            return 0
        if self._head(self.limits.max_num_batched_tokens - decoding.num_sequences) is not None:
            return 0
        return decoding.num_steps_within(self._num_free_blocks)

    def skip(self, num_steps: int) -> None:
        """Run that many steps, all of them quiet."""
        self._num_free_blocks -= self._decoding.advance(num_steps)

    def step(self) -> Step:
        if not self._by_id:
            raise ParsError("the engine has no work")
        budget = self.limits.max_num_batched_tokens
        part, num_new = self._prefilling, 0
        num_blocks = self._decoding.num_blocks()
        if part is not None:
            left = part.num_tokens - part.num_computed
            num_new = min(left, budget - self._decoding.num_sequences)
            num_blocks += self._num_blocks(part.num_computed, num_new)
        if num_blocks > self._num_free_blocks:
            return self._step_without_room(budget)
        self._num_free_blocks -= num_blocks
        self._decoding.advance(1)
        admitted = self._admit(budget - self._decoding.num_sequences - num_new)
        return self._end_step(self._decoding.num_sequences, num_new, admitted)

    def _enqueue(self, sequence: Sequence, *, at_front: bool = False) -> None:
        self._num_queued += 1
        serial = self._num_queued
        if self.limits.scheduling_policy == "priority":
            place = (sequence.priority, sequence.arrival_s, sequence.request_id)
        else:
            place = (-serial if at_front else serial, 0.0, "")
        heapq.heappush(self._queue, (*place, serial, sequence))

    def _head(self, budget: int) -> Sequence | None:
        """The first in the queue, if it can be admitted now."""
        if len(self._running) >= self.limits.max_num_seqs or budget <= 0:
            return None
        while self._queue:
            sequence = self._queue[0][-1]
            if self._by_id.get(sequence.request_id) is not sequence:
                heapq.heappop(self._queue)
                continue
            fits = self._num_blocks(0, sequence.num_tokens) <= self._num_free_blocks
            return sequence if fits else None
        return None

    def _admit(self, budget: int) -> list[Sequence]:
        admitted = []
        while (sequence := self._head(budget)) is not None:
            heapq.heappop(self._queue)
            budget -= self._start(sequence, budget)
            admitted.append(sequence)
        return admitted

    def _start(self, sequence: Sequence, budget: int) -> int:
        """Let a sequence run; how many of its tokens are computed in its first step."""
        sequence.num_computed = min(sequence.num_tokens, budget)
        self._num_free_blocks -= self._num_blocks(0, sequence.num_computed)
        self._num_admitted += 1
        sequence.order = self._num_admitted
        self._running[sequence.request_id] = sequence
        return sequence.num_computed

    def _step_without_room(self, budget: int) -> Step:
        """Give blocks to one running request after the other, and preempt for those without."""
        running = list(self._running.values())
        scheduled: dict[Sequence, int] = {}
        preempted: list[Sequence] = []
        index = 0
        while index < len(running):
            sequence = running[index]
            num_computed = sequence.num_computed + self._decoding.num_decoded(sequence)
            num_new = 1
            if sequence is self._prefilling:
                num_new = min(sequence.num_tokens - num_computed, budget)
            num_blocks = self._num_blocks(num_computed, num_new)
            while num_blocks > self._num_free_blocks and sequence not in preempted:
                victim = self._worst(running)
                place = running.index(victim)
                del running[place]
                index -= place < index
                budget += self._preempt(victim, scheduled.pop(victim, 0))
                preempted.append(victim)
            if sequence in preempted:
                break  # vLLM leaves those behind it out of the step
            self._num_free_blocks -= num_blocks
            budget -= num_new
            scheduled[sequence] = num_new
            index += 1
        held_back = [it for it in running if it.since >= 0 and it not in scheduled]
        for sequence in held_back:
            self._decoding.stop(sequence)
        num_decode_seqs = self._decoding.num_sequences
        self._decoding.advance(1)
        part = self._prefilling
        step = self._end_step(num_decode_seqs, scheduled.get(part, 0) if part else 0, [])
        for sequence in held_back:
            self._decoding.start(sequence)
        return step._replace(preempted=[it.request_id for it in preempted])

    def _worst(self, running: list[Sequence]) -> Sequence:
        if self.limits.scheduling_policy == "fcfs":
            return running[-1]
        return max(running, key=lambda it: (it.priority, it.arrival_s))

    def _preempt(self, victim: Sequence, num_new: int) -> int:
        """Queue a running request again; returns the tokens that it had got in this step."""
        num_computed = victim.num_computed + self._decoding.num_decoded(victim)
        self._num_free_blocks += self._num_blocks(num_computed, num_new)
        self._release(victim)
        victim.num_computed = 0
        self._enqueue(victim, at_front=True)
        return num_new

    def _end_step(self, num_decode_seqs: int, num_new: int, admitted: list[Sequence]) -> Step:
        """
        What the step computed, and who is done; those that decode have advanced already.

        Args:
            num_new: Tokens of the prompt in the making; 0 without one.
        """
        num_prefill_tokens, num_kv_tokens = 0, self._decoding.num_kv_tokens
        finished = self._decoding.ended()
        sampled = []
        chunks = [(sequence, sequence.num_computed) for sequence in admitted]
        if num_new and (part := self._prefilling) is not None:
            part.num_computed += num_new
            chunks.insert(0, (part, num_new))
        for sequence, num_tokens in chunks:
            num_kv_tokens += sequence.num_computed
            if num_tokens == 1 and sequence.num_outputs:
                num_decode_seqs += 1  # the last token of one that was preempted
            else:
                num_prefill_tokens += num_tokens
            is_whole = sequence.num_computed == sequence.num_tokens
            self._prefilling = None if is_whole else sequence
            if is_whole:
                sampled.append(sequence)
        first_token = [it.request_id for it in sampled if not it.num_outputs]
        resumed = [it.request_id for it in sampled if it.num_outputs]
        for sequence in sampled:
            sequence.num_outputs += 1
            if sequence.num_outputs == sequence.output_tokens:
                finished.append(sequence)
            else:
                self._decoding.start(sequence)
        for sequence in finished:
            del self._by_id[sequence.request_id]
            self._release(sequence)
        return Step(
            num_prefill_tokens=num_prefill_tokens,
            num_decode_seqs=num_decode_seqs,
            num_kv_tokens=num_kv_tokens,
            admitted=[it.request_id for it in admitted],
            first_token=first_token,
            resumed=resumed,
            finished=[it.request_id for it in finished],
            preempted=[],
            num_running=len(self._running),
            num_waiting=len(self._by_id) - len(self._running),
        )

    def _num_outputs(self, sequence: Sequence) -> int:
        return sequence.num_outputs + self._decoding.num_decoded(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Take a running request's place and blocks away."""
        if sequence.since >= 0:
            self._decoding.stop(sequence)
        if sequence is self._prefilling:
            self._prefilling = None
        self._num_free_blocks += self._num_blocks(0, sequence.num_computed)
        del self._running[sequence.request_id]

    def _num_blocks(self, num_computed: int, num_new: int) -> int:
        """Blocks that `num_new` tokens need after `num_computed`."""
        size = self.limits.block_size
        return (num_computed + num_new - 1) // size - (num_computed - 1) // size

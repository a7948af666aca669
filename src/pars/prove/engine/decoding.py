"""
The requests that decode, as one batch whose step costs the same however many there are.

    decoding = Decoding(block_size=16)
    decoding.start(sequence)                  # its first token is there
    decoding.num_blocks(at=0)                 # KV blocks that the next step needs, of all together
    decoding.advance(1)                       # each has one token more
    decoding.ended()                          # those that have their last

Whoever decodes grows by one token a step. So nothing about a request is stored but the step at
which it began: its end is known at once, and how many start a new block in a step is a count by
`(tokens - step) mod block_size`, which never changes while it decodes.
"""

import heapq
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine. While it decodes, both counts grow by one a step from `since`."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    priority: int
    arrival_s: float
    num_outputs: int = 0  # at step `since`
    num_computed: int = 0  # tokens in the KV cache, at step `since`
    since: int = -1  # the step at which it began to decode; -1: it does not
    order: int = 0  # of admission

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far: what must be computed before the next token."""
        return self.prompt_tokens + self.num_outputs


class Decoding:
    """See the module. Attributes: num_sequences, and num_kv_tokens in their KV cache together."""

    def __init__(self, block_size: int) -> None:
        self.num_sequences = 0
        self.num_kv_tokens = 0
        self._now = 0  # steps so far
        self._phases = [0] * block_size  # how many, by (num_computed - step) % block_size
        self._ends: list[tuple[int, int, Sequence]] = []  # may hold some that no longer decode

    def start(self, sequence: Sequence) -> None:
        """It decodes from the next step on."""
        sequence.since = self._now
        end = self._now + sequence.output_tokens - sequence.num_outputs
        heapq.heappush(self._ends, (end, sequence.order, sequence))
        self._count(sequence, 1)

    def stop(self, sequence: Sequence) -> None:
        """It decodes no more; its counts are as they are now."""
        self._count(sequence, -1)
        num_decoded = self.num_decoded(sequence)
        sequence.num_outputs += num_decoded
        sequence.num_computed += num_decoded
        sequence.since = -1

    def num_decoded(self, sequence: Sequence) -> int:
        """Tokens since it began to decode; 0 if it does not."""
        return self._now - sequence.since if sequence.since >= 0 else 0

    def num_blocks(self, at: int = 0) -> int:
        """New KV blocks, of all together, in the step that is `at` steps ahead."""
        return self._phases[-(self._now + at) % len(self._phases)]

    def num_steps_within(self, num_free_blocks: int) -> int:
        """Steps before the first end for which so many free blocks last."""
        most = self._first_end() - self._now - 1
        cycles, left = divmod(num_free_blocks, self.num_sequences)
        steps = cycles * len(self._phases)  # a block each, in as many steps as a block has tokens
        while steps < most:
            left -= self.num_blocks(at=steps)
            if left < 0:
                return steps
            steps += 1
        return most

    def advance(self, num_steps: int) -> int:
        """Go on by some steps; returns the KV blocks that they took."""
        cycles, rest = divmod(num_steps, len(self._phases))
        num_blocks = cycles * self.num_sequences + sum(map(self.num_blocks, range(rest)))
        self.num_kv_tokens += num_steps * self.num_sequences
        self._now += num_steps
        return num_blocks

    def ended(self) -> list[Sequence]:
        """Those with their last token, in order of admission; they have been stopped."""
        ended = []
        while self._ends and self._ends[0][0] <= self._now:
            end, _, sequence = heapq.heappop(self._ends)
            if self._is_end(end, sequence):
                self.stop(sequence)
                ended.append(sequence)
        return ended

    def _first_end(self) -> int:
        while not self._is_end(self._ends[0][0], self._ends[0][2]):
            heapq.heappop(self._ends)
        return self._ends[0][0]

    def _is_end(self, end: int, sequence: Sequence) -> bool:
        """Whether an entry of `_ends` still holds: not after a preemption or an abort."""
        left = sequence.output_tokens - sequence.num_outputs
        return sequence.since >= 0 and sequence.since + left == end

    def _count(self, sequence: Sequence, sign: int) -> None:
        self.num_sequences += sign
        self.num_kv_tokens += sign * (sequence.num_computed + self.num_decoded(sequence))
        self._phases[(sequence.num_computed - sequence.since) % len(self._phases)] += sign

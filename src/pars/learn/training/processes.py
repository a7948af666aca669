"""The processes of a torchrun or `accelerate launch`: who encodes what, and how results meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pars.learn.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of a torchrun; one alone otherwise."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Only the first process prints and writes."""
        return self.rank == 0

    def share(self, num_items: int) -> slice:
        """This process's part of `num_items`; the parts are in order of rank and cover all."""
        return slice(num_items * self.rank // self.count, num_items * (self.rank + 1) // self.count)

    def gather(self, scores: Tensor, num_items: int) -> Tensor:
        """The outputs of all shares [num_items, any]; gradients flow into this process's share."""
        if self.count == 1:
            return scores
        parts = [
            torch.zeros(
                len(range(num_items)[Processes(rank, self.count, self.device).share(num_items)]),
                *scores.shape[1:],
                device=scores.device,
            )
            for rank in range(self.count)
        ]
        longest = max(map(len, parts))
        sent = nn.functional.pad(scores.detach().float(), (0, 0, 0, longest - len(scores)))
        received = [torch.empty_like(sent) for _ in parts]
        dist.all_gather(received, sent)
        parts = [full[: len(part)] for full, part in zip(received, parts, strict=True)]
        parts[self.rank] = scores
        return torch.cat(parts)

    def add_gradients(self, model: nn.Module) -> None:
        """Sum every parameter's gradient over the processes."""
        if self.count > 1:
            for parameter in model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.count == 1:
            return flag
        total = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(total)
        return bool(total.item() > 0)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """This process's place, from torchrun's environment; the group is left at the end."""
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    cuda = torch.cuda.is_available() and not wants_cpu
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    if count == 1:
        yield Processes(0, 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def low_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """
    The type of an encoder's matrix products in training, beside float32 for all else; None: that.

    A CPU that multiplies bfloat16 itself (AVX-512 BF16, AMX) takes it: a step of MiniLM then takes
    0.4 of the time. Others only emulate it.
    """
    if config.precision == "bfloat16":
        return torch.bfloat16
    if config.precision == "float32" or config.model == "lite":  # which has hardly any products
        return None
    if device.type == "cuda":
        return torch.float16
    told = (getattr(torch.cpu, f"_is_{it}_supported", None) for it in ("avx512_bf16", "amx_tile"))
    return torch.bfloat16 if any(is_there and is_there() for is_there in told) else None

"""The processes of `torchrun` or `accelerate launch`; one process alone is a group of one."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    rank: int  # this process
    count: int
    device: torch.device  # its own

    @classmethod
    def join(cls, device: str) -> "Processes":
        """Meet the others, if the launcher has started any. With several GPUs, "cuda" is the one of this process."""
        count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if count > 1 and device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        if count > 1 and not dist.is_initialized():
            backend = "nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=12))  # they wait while one tokenizes
            atexit.register(dist.destroy_process_group)  # not before: a second group would meet at the first one's addresses
        return cls(rank, count, torch.device(device))

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, in the order of their ranks."""
        if self.count == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(everyone, mine)
        return [theirs.tolist() for theirs in everyone]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the processes."""
        return [sum(column) for column in zip(*self.gather(values))]

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()

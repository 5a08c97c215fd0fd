"""Rounds in turn: each contender has a process of its own, and only one of them works at a time."""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

Contender = Callable[..., None]  # calls its first argument, `lap`, before its first round and after each, for ever


def interleave(contenders: dict[str, tuple[Contender, dict]], rounds: int, device: str) -> dict[str, dict]:
    """Run A, B, C, A, B, C, ... so that whatever slows the machine down for a while slows all of them.

    A round before the first warms up and is not counted.

    Args:
        contenders: for each name a function of a module and its keyword arguments.
    Returns:
        for each name "peak_mib" and lists with an entry a round: "seconds" and what the contender gives `lap`.
    Raises:
        RuntimeError: if a contender fails; its traceback has been printed.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes, found = {}, [], {name: [] for name in contenders}
    try:
        for name, (work, settings) in contenders.items():
            pipes[name], end = context.Pipe()
            processes.append(context.Process(target=compete, args=(end, device, work, settings)))
            processes[-1].start()
            end.close()
            pipes[name].recv()  # it is ready
        for _ in range(1 + rounds):
            for name, pipe in pipes.items():
                pipe.send("go")
                found[name].append(pipe.recv())
    except EOFError:
        raise RuntimeError(f"'{name}' failed.") from None
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()
    return {
        name: {"peak_mib": round(laps[-1].pop("peak_mib"))} | {key: [lap[key] for lap in laps[1:]] for key in laps[-1]}
        for name, laps in found.items()
    }


def compete(pipe, device: str, work: Contender, settings: dict) -> None:
    """What the process of a contender does."""
    import torch

    from bert_course import lesson

    lesson.setup()
    started = time.perf_counter()

    def lap(**more) -> None:
        nonlocal started
        if device == "cuda":
            torch.cuda.synchronize()
        pipe.send({"seconds": time.perf_counter() - started, "peak_mib": peak_mib(device)} | more)
        try:
            pipe.recv()
        except EOFError:
            raise SystemExit from None
        started = time.perf_counter()

    work(lap, device=device, **settings)


def peak_mib(device: str) -> float:
    """The most memory this process has had so far: of the GPU, or resident (where that is not known, resident now)."""
    import psutil
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # unlike getrusage, does not count what the parent process had
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return psutil.Process().memory_info().rss / 2**20

"""Several processes that train one program: `torch.distributed`, launched by `torchrun`.

    torchrun --nproc-per-node 2 script.py        `fit` in the script joins the two processes

Rank r of W takes the rows r, r + W, … of each batch, a shard of b_r data. One all-reduce per update
sums the gradients of all ranks:

    gradient = Σ_r Σ_{i in shard r} ∇l_i / Σ_r b_r

so each datum counts once, even in a batch of 7. A hook on gradients would not fire in a traced
step, so the sum is explicit. It also carries whether a shard diverged or a signal arrived, so all
processes stop after the same update.

All ranks draw the same order of data, from a separate stream, but different noise. Initial weights,
seed, validation and callbacks are those of rank 0, which alone writes; buffers that training
changes are synchronized to rank 0 after each epoch. `fit` joins the processes that `torchrun`
launched (gloo on CPUs, NCCL on GPUs), or those that the caller has joined already. A process that
waits longer than PYROVAE_TIMEOUT seconds for another gives up: validation, callbacks and saving,
for which the others wait, must take less.

Not supported: data that differ by rank. Each process is given all data and takes its shard of each
batch; it reads every window of a memory-mapped file, and every batch of a loader. An objective that
is not a sum over data (`FreeBits`) is that of each shard.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyrovae.errors import ConfigError, WorkerLostError
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.signals import Interrupts

TIMEOUT = 600.0  # seconds
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
DIVERGED = -1
PATIENCE = 3.0  # seconds for the others to say that they are waiting as well


class Alone:
    """The only process of a run, with the interface of `Group`: nothing has to be sent."""

    rank, size, is_first = 0, 1, True
    rows = slice(None)
    diverged = ()

    def share(self, size: int) -> int:
        """Return how many rows of a batch of `size` this process takes."""
        return len(range(size)[self.rows])

    def streams(self, seed: int) -> tuple[RandomStream, RandomStream]:
        """Return the streams of this process's draws, and of the order of data: here the same."""
        stream = RandomStream(seed)
        return stream, stream

    def all_reduce_gradients(self, gradients: list[Tensor], count: int, **_: Any) -> int:
        return count

    def all_reduce(self, values: Tensor) -> Tensor:
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        pass

    def broadcast_object(self, value: Any) -> Any:
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def check_same(self, facts: dict[str, dict[str, Any]]) -> None:
        pass

    def agreed(self, interrupts: Interrupts) -> Callable[[], None]:
        return interrupts.check


class Group(Alone):
    """The processes of a run; made by `processes`.

    Attributes:
        rank: of this process, from 0; is_first: whether it is 0, the one that writes.
        size: W, the number of processes.
        rows: those of each batch that this process takes.
        signal_of: () → the signal that this process received, or 0; sent to the others.
        signal: one that any process received before the latest update; 0 for none.
        diverged: ranks whose shard of the latest update was not finite.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.rows, self.is_first = slice(self.rank, None, self.size), self.rank == 0
        is_nccl = dist.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else "cpu"
        self.store = dist.distributed_c10d._get_default_store()
        self.signal_of: Callable[[], int] = int
        self.signal, self.diverged = 0, []
        with suppress(RuntimeError):
            self.store.delete_key(_key(self.rank))  # of an earlier run of this process

    def streams(self, seed: int) -> tuple[RandomStream, RandomStream]:
        """Return a stream for each process, on rank 0 that of a single one, and a shared one."""
        noise = RandomStream(_derived(seed, self.rank) if self.rank else seed)
        return noise, RandomStream(_derived(seed, 2**32 - 1))

    def all_reduce_gradients(
        self, gradients: list[Tensor], count: int, *, is_diverged: bool = False
    ) -> int:
        """Sum gradients, in place, over all processes, by one all-reduce; return Σ_r b_r.

        The gradients are sums over the shard of this process, of `count` = b_r data.
        """
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        tail = torch.zeros(1 + self.size, dtype=dtype, device=gradients[0].device)
        tail[0], tail[1 + self.rank] = count, DIVERGED if is_diverged else self.signal_of()
        flat = self.all_reduce(torch.cat([*(g.reshape(-1) for g in gradients), tail]))
        *parts, tail = flat.split([*(g.numel() for g in gradients), len(tail)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        total, *notes = map(round, tail.tolist())
        self.diverged = [rank for rank, note in enumerate(notes) if note == DIVERGED]
        self.signal = max(0, *notes)
        return total

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, as a new tensor."""
        there = values.to(self.device, copy=True)
        self._collective(dist.all_reduce, there)
        return there.to(values.device)

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Set tensors to the values of rank 0, in place."""
        with torch.no_grad():
            for tensor in tensors:
                there = tensor.to(self.device, copy=True).reshape(-1)
                # as bytes, because gloo does not support all dtypes
                self._collective(dist.broadcast, there.view(torch.uint8), 0)
                tensor.copy_(there.view_as(tensor))

    def broadcast_object(self, value: Any) -> Any:
        """Return what rank 0 passes: plain values, arrays, and tensors on the CPU."""
        found = [value if self.is_first else None]
        self._collective(dist.broadcast_object_list, found, 0)
        return found[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return what each process passes, by rank; arguments as in `broadcast_object`."""
        found = [None] * self.size
        self._collective(dist.all_gather_object, found, value)
        return found

    def check_same(self, facts: dict[str, dict[str, Any]]) -> None:
        """Raise a ConfigError unless all processes have the same facts; the machine may differ."""
        texts = {name: json.dumps(fact, default=str) for name, fact in facts.items()}
        digests = {n: sha256(text.encode()).hexdigest() for n, text in texts.items()}
        found = self.all_gather_object({n: d for n, d in digests.items() if n != "machine"})
        for rank, other in enumerate(found):
            names = [name for name in other if other[name] != found[0][name]]
            if names:
                raise ConfigError(
                    f"the {' and the '.join(names)} of rank {rank} differ from those of rank 0, "
                    "but each process takes its share of the same batches.\nGive every process "
                    "all of the data and the same arguments; fit distributes the rows itself."
                )

    def agreed(self, interrupts: Interrupts) -> Callable[[], None]:
        """Return a check that interrupts all processes after the same update."""
        self.signal_of = lambda: interrupts.received or 0

        def check() -> None:
            if self.signal:
                interrupts.received = self.signal
                interrupts.check()

        return check

    # When another process is gone.

    def tell(self, error: BaseException) -> None:
        """Tell the others why this process ends."""
        if not isinstance(error, WorkerLostError):
            line = str(error).partition("\n")[0][:200]
            self._note(f"ended with {type(error).__name__}: {line}")

    def _note(self, text: str) -> None:
        with suppress(RuntimeError):  # the store may be gone as well
            self.store.set(_key(self.rank), text)

    def _collective(self, operation: Callable, *args: Any) -> None:
        try:
            operation(*args)
        except RuntimeError as error:  # of gloo and of NCCL
            self._note("waits")
            reason = str(error).rpartition("] ")[2].partition(". ")[0].strip()
            raise WorkerLostError(
                f"rank {self.rank} of {self.size} timed out: {self._who()} ({reason[:120]}).\n"
                "No update is possible without all processes, so this one ends too; checkpoints "
                "are intact.\nRun the same command again, with run_dir and resume=True in fit "
                "(torchrun --max-restarts 3 restarts by itself)."
            ) from None

    def _who(self) -> str:
        """Say what the store knows about the processes that are not waiting like this one."""
        silent = set(range(self.size)) - {self.rank}
        deadline, found = time.monotonic() + PATIENCE, {}
        try:
            while silent and time.monotonic() < deadline:
                known = {rank for rank in silent if self.store.check([_key(rank)])}
                found |= {rank: self.store.get(_key(rank)).decode() for rank in known}
                silent -= known
                time.sleep(0.05)
        except RuntimeError:
            return "another process is gone, and so is the one that would know which"
        lines = [f"rank {rank} {text}" for rank, text in sorted(found.items()) if text != "waits"]
        lines += [f"rank {rank} does not answer" for rank in sorted(silent)]
        return "; ".join(lines[:3]) or "the connection failed, or one came later than the timeout"


def _key(rank: int) -> str:
    return f"pyrovae/end/{rank}"


def _derived(seed: int, number: int) -> int:
    # not seed + number, which would be the seed of another run
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def is_first() -> bool:
    """Return whether this process is rank 0 or the only one: the one that writes and prints.

    Example:
        >>> is_first()
        True
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not _is_launched() or os.environ["RANK"] == "0"


def _is_launched() -> bool:
    return all(name in os.environ for name in LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def processes(program: nn.Module, device: Any = None) -> Iterator[Alone]:
    """Join the processes that share this run, inside the block; `Alone` if this is the only one.

    Args:
        program: on a GPU they are joined by NCCL, otherwise by gloo.
        device: where the program will be moved; None leaves it. A process takes the GPU of its
            local rank.

    Raises:
        WorkerLostError: another process ended, or did not arrive in time.
        ConfigError: PYROVAE_TIMEOUT is not a number of seconds.

    Example:
        >>> with processes(nn.Linear(2, 1)) as group:
        ...     group.size
        1
    """
    is_joined = dist.is_available() and dist.is_initialized()
    if not is_joined and not _is_launched():
        yield Alone()
        return
    hook = sys.excepthook  # torch replaces it each time
    if not is_joined:
        _join(is_cuda=str(device or next(program.parameters()).device).startswith("cuda"))
    group = Group()
    try:
        yield group if group.size > 1 else Alone()
        group.all_reduce(torch.zeros(1))  # so that rank 0 has written everything
    except BaseException as error:
        group.tell(error)
        raise
    finally:
        if not is_joined:
            dist.destroy_process_group()
            sys.excepthook = hook


def _join(*, is_cuda: bool) -> None:
    if is_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend, timeout = "nccl" if is_cuda else "gloo", _timeout()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # a new prefix for each run: gloo would take the addresses of an earlier run for its own
        store = dist.PrefixStore(f"pyrovae/{store.add(f'pyrovae/{rank}', 1)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        raise WorkerLostError(
            f"rank {rank} could not join the {size} processes of the run: "
            f"{str(error).partition(chr(10))[0][:200]}.\nAll of them must call fit within "
            "PYROVAE_TIMEOUT seconds."
        ) from None


def _timeout() -> timedelta:
    text = os.environ.get("PYROVAE_TIMEOUT", TIMEOUT)
    with suppress(ValueError, OverflowError):
        if float(text) > 0:
            return timedelta(seconds=float(text))
    raise ConfigError(
        f"PYROVAE_TIMEOUT is {text!r}, but it is the seconds that processes wait for each other.\n"
        "Set it to a number above 0, such as 600."
    )

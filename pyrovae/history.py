"""The record of a training run."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Epoch(NamedTuple):
    """Record of one epoch, in nats per datum; ELBO = −(reconstruction + kl).

    Attributes:
        epoch: its number, from 1.
        elbo: mean over the training data, each scored in its own step; higher is better.
        reconstruction: its −log p(x|z); lower is better.
        kl: its KL(q(z|x) ‖ p(z)), at the same draws.
        validation_elbo: after the epoch, in eval mode; None without validation data.
        validation_reconstruction: its −log p(x|z).
        validation_kl: its KL.
        seconds: wall-clock time since `fit` started, including interrupted runs.
        learning_rate: that of the last step.
    """

    epoch: int
    elbo: float
    reconstruction: float
    kl: float
    validation_elbo: float | None
    validation_reconstruction: float | None
    validation_kl: float | None
    seconds: float
    learning_rate: float | None = None


@dataclass(repr=False)
class History:
    """The epochs of a run of `fit`: an `Epoch` by index, a column by its name.

    Attributes:
        epochs: the records, in order.
        num_data: N, the number of data per epoch.
        seed: seed of the run; a fresh one if None was given.
        best_epoch: the epoch whose weights were kept; the last one without validation data, or
            if every validation ELBO was NaN.
        stopped_early: whether patience ran out, or a callback ended the run, before the planned
            number of epochs.
        bound_on: what each elbo bounds: "log p(x)", or "log p(x) of the relaxed model" for relaxed
            latents (`priors.RelaxedBernoulli`).
        engine: how steps were computed: "eager", "graph" or "inductor", and why not otherwise.
        changes: descriptions of what was changed on resuming, if anything.
        collapse: `diagnostics.Collapse` at the end of training: which latent dimensions carry no
            information about x. After 500 steps or more, `fit` warns of it.
        monitor: records of the training monitor, one every `diagnostics_every` steps.

    Example:
        >>> history = History(num_data=5, seed=0)
        >>> history.epochs.append(Epoch(1, -2.0, 1.5, 0.5, None, None, None, 0.1))
        >>> history[-1].elbo, history["kl"]
        (-2.0, [0.5])
        >>> history
        History(N = 5, epochs = 1: ELBO -2)
    """

    epochs: list[Epoch] = field(default_factory=list)
    num_data: int = 0
    seed: int = 0
    best_epoch: int = 0
    stopped_early: bool = False
    bound_on: str = "log p(x)"
    engine: str = "eager"
    changes: list[str] = field(default_factory=list)
    monitor: list[dict[str, Any]] = field(default_factory=list)
    collapse: Any = None

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(0 epochs)"
        last = self.epochs[-1]
        text = f"N = {self.num_data:,}, epochs = {len(self.epochs)}: ELBO {last.elbo:.4g}"
        if last.validation_elbo is not None:
            text += f", held out {last.validation_elbo:.4g}, best epoch {self.best_epoch}"
        return f"History({text})"

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [getattr(epoch, key) for epoch in self.epochs]
        return self.epochs[key]

    @classmethod
    def from_csv(cls, path: str | Path, *, seed: int = 0) -> "History":
        """Read the records in a history.csv of `fit`; the best epoch is the last one.

        Raises:
            OSError: the file cannot be read.
        """
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        records = [
            Epoch(*(None if row[n] == "" else float(row[n]) for n in Epoch._fields)) for row in rows
        ]
        records = [record._replace(epoch=int(record.epoch)) for record in records]
        return cls(records, seed=seed, best_epoch=len(records))

    def state(self) -> dict[str, Any]:
        """Return state for `runtime.state_tree.pack`: floats bit for bit, columns as tensors."""
        rows = [[math.nan if v is None else float(v) for v in epoch] for epoch in self.epochs]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(Epoch._fields))
        is_none = torch.tensor([[v is None for v in epoch] for epoch in self.epochs])
        own = {"epochs": table, "is_none": is_none.reshape(table.shape), "collapse": None}
        return {**vars(self), **own, "monitor": _columns(self.monitor)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the history that `state` was made from."""
        state = dict(state)
        table, is_none = state["epochs"], state.pop("is_none")
        pairs = zip(table.tolist(), is_none.tolist(), strict=True)
        rows = [[None if n else v for v, n in zip(*pair, strict=True)] for pair in pairs]
        epochs = [Epoch(int(row[0]), *row[1:]) for row in rows]
        vars(self).update(state, epochs=epochs, monitor=_records(state["monitor"]))


def _columns(records: list[dict[str, Any]]) -> Any:
    """Convert records of equal names to one column per name; return others unchanged.

    Lists of numbers for many steps would soon exceed the JSON allowed in a checkpoint.
    """
    if not records or any(record.keys() != records[0].keys() for record in records):
        return records
    return {name: _column([record[name] for record in records]) for name in records[0]}


def _column(values: list[Any]) -> Any:
    """Convert integers or floats, or lists of them, to a tensor; return others unchanged."""
    sizes = {len(value) if isinstance(value, list) else None for value in values}
    rows = values if None not in sizes else [values]
    types = {type(number) for row in rows for number in row} if len(sizes) == 1 else set()
    dtype = {(int,): torch.int64, (float,): torch.float64}.get(tuple(types))
    return values if dtype is None else torch.tensor(values, dtype=dtype)


def _records(columns: Any) -> list[dict[str, Any]]:
    """Invert `_columns`."""
    if not isinstance(columns, dict):
        return columns
    lists = [c.tolist() if isinstance(c, torch.Tensor) else c for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]

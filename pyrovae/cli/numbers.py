"""The numbers of a run's card, mean ELBO terms with two errors, and their labels.

    std_error    s / √N over the data: to compare with other data
    draw_error   √(Σ_i s_i² / S) / N over the S draws of z: to compare with other draws

`pyrovae verify`, which scores the same data again, uses the second.
"""

from typing import Any

import pyrovae as pv
from pyrovae.report import TERMS

NUM_SAMPLES = 10  # draws of z per datum behind each number of the table


def bound_on(vae: Any, x: Any) -> str:
    """Return what the ELBO bounds: "log p(x)", or "log p(x) of the relaxed model"."""
    from pyrovae.contract.program import trace_once
    from pyrovae.core import terms

    return terms.bound_on(*trace_once(vae, x[:1]))


def labels(bound: str) -> dict[str, str]:
    """Return the label of each term, the ELBO's with the model it bounds if a relaxed one."""
    elbo = TERMS["elbo"].replace("ELBO", "ELBO" + bound.removeprefix("log p(x)"))
    return {**TERMS, "elbo": elbo}


def with_error(number: dict[str, float]) -> str:
    """Format value ± standard error, in nats."""
    return f"{number['value']:.2f} ± {number['std_error']:.2f}"


def estimate(vae: Any, x: Any, seed: int, *, num_samples: int | None = None) -> dict[str, Any]:
    """Estimate the terms of x (N, *event), nats per datum, with errors, from S ≥ 2 draws of z."""
    import torch

    num_samples = num_samples or NUM_SAMPLES
    terms = pv.elbo_terms(vae, x, num_samples=num_samples, seed=seed)
    draws = torch.stack([terms.log_weights, -terms.log_likelihood, terms.kl]).double()
    mean, variance = draws.mean(1), draws.var(1) / num_samples  # (3, N)
    value, spread = mean.mean(1), mean.std(1) / len(x) ** 0.5
    draw_error = variance.sum(1).sqrt() / len(x)
    columns = torch.stack([value, spread, draw_error], 1).tolist()
    names = ("value", "std_error", "draw_error")
    numbers = (dict(zip(names, column, strict=True)) for column in columns)
    return {"num_data": len(x), **dict(zip(TERMS, numbers, strict=True))}

"""Did the prior matter? Compare models by the evidence of held-out data, and explain why.

    Δ_i = log p_a(x_i) − log p_b(x_i),    mean Δ ± s_Δ / √N     paired over data

Pairing cancels the variation between data that are easy or hard for every model, so the error of
a difference is much smaller than that of either mean. It covers the sampling of data and the
Monte-Carlo noise of the estimates, but not their bias: importance sampling underestimates log p(x)
by about half the squared standard error of each datum, reported as `bias`. The surgery terms
explain why one prior wins: distortion, mutual information, and the marginal KL.

Unlike leave-one-out cross-validation of log p(x_i|z_i), whose z_i was inferred from x_i, the
evidence of held-out data is a fair score of a whole VAE.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.contract.covariates import sees_covariates
from pyrovae.contract.validator import is_discrete
from pyrovae.diagnostics.estimate import Estimate, mean_of
from pyrovae.diagnostics.surgery import decompose_elbo
from pyrovae.errors import ConfigError
from pyrovae.evidence import log_evidence, method_of
from pyrovae.runtime.ambient import exclusive


class ComparedModel(NamedTuple):
    """One row of a comparison; nats per datum.

    Attributes:
        name: its key in `models`.
        rank: 0 for the best.
        log_px: mean log p(x), with its error over data; higher is better.
        difference: log p(x) of the best model minus that of this one, paired, with its error;
            0 ± 0 for the best. Positive is worse.
        bias: approximate downward bias of log_px by importance sampling; 0 for exact methods.
        share_failed: share of the data whose log p(x) is only bounded from below, without an
            interval (`Evidence.upper` is ∞).
        elbo, reconstruction, kl: mean terms of the ELBO, with errors over data.
        mutual_information, marginal_kl: the surgery of its KL (see `decompose_elbo`).
    """

    name: str
    rank: int
    log_px: Estimate
    difference: Estimate
    bias: float
    share_failed: float
    elbo: Estimate
    reconstruction: Estimate
    kl: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference to the best exceeds two standard errors and the biases."""
        return self.difference.value - self.bias > 2 * self.difference.std_error


class Comparison(NamedTuple):
    """Models ordered by their evidence, the best first.

    Attributes:
        rows: one `ComparedModel` per model.
        log_px: name → (N,) float64, log p(x) per datum, nats.
    """

    rows: tuple[ComparedModel, ...]
    log_px: dict[str, Tensor]

    def table(self) -> dict[str, list]:
        """Return columns by name, for `pandas.DataFrame(table)`; errors in "…_std_error"."""
        columns: dict[str, list] = {}
        for row in self.rows:
            for name, value in row._asdict().items():
                is_estimate = isinstance(value, Estimate)
                columns.setdefault(name, []).append(value.value if is_estimate else value)
                if is_estimate:
                    columns.setdefault(f"{name}_std_error", []).append(value.std_error)
        return columns

    def stacking_weights(self, num_steps: int = 1000) -> dict[str, float]:
        """Return the weights of the mixture of all models that predicts x best, name → weight.

        w* = argmax Σ_i log Σ_k w_k p_k(x_i) over the simplex, by expectation-maximization, which
        never decreases it. Unlike posterior probabilities, the weights do not concentrate on one
        model of several that predict different data well.

        Args:
            num_steps: steps of expectation-maximization.

        References:
            Using stacking to average Bayesian predictive distributions, Yao, Vehtari, Simpson &
            Gelman, 2018, https://doi.org/10.1214/17-BA1091

        Example:
            >>> log_px = {"a": torch.tensor([0.0, -9.0]), "b": torch.tensor([-9.0, 0.0])}
            >>> weights = Comparison((), log_px).stacking_weights()
            >>> round(weights["a"], 4), round(weights["b"], 4)
            (0.5, 0.5)
        """
        log_px = torch.stack(list(self.log_px.values()), -1).double()  # (N, K)
        log_weights = torch.full_like(log_px[0], -math.log(log_px.shape[1]))
        for _ in range(num_steps):
            shares = (log_px + log_weights).log_softmax(-1)
            log_weights = shares.logsumexp(0) - math.log(len(log_px))
        return dict(zip(self.log_px, log_weights.exp().tolist(), strict=True))

    def __str__(self) -> str:
        lines = [f"{'':20} {'log p(x)':>18} {'difference':>18}  MI      KL(q(z)|p)  distortion"]
        for row in self.rows:
            pairs = (row.log_px, row.difference)
            numbers = " ".join(f"{e.value:9.3f} ± {e.std_error:5.3f} " for e in pairs)
            parts = row.mutual_information, row.marginal_kl, row.reconstruction
            lines.append(f"{row.name:20} {numbers} " + "  ".join(f"{e.value:7.3f}" for e in parts))
        return "\n".join(lines)


@exclusive
def compare_priors(
    models: Mapping[str, nn.Module],
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    method: str | Any = "auto",
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
    **options: Any,
) -> Comparison:
    """Compare models (with different priors, say) by paired differences of held-out log p(x).

    Args:
        models: name → program, for the same data x in the same units, with likelihoods of the
            same kind (discrete or continuous).
        x: (N, *event), held-out data; N ≥ 2 for errors.
        y: (N, …), covariates, for the models that see them.
        mask: of x's shape, true where x is observed.
        method: method for log p(x), as in `log_evidence`.
        num_globals: draws of global latents, as in `log_evidence`.
        seed: random seed; None uses a fresh one for each model.
        memory_budget: bytes per chunk, as in `log_evidence`.
        **options: options of the method, except `num_data`: all models need the same rows.

    Returns:
        Comparison: rows, best first, and log p(x) per datum.

    Raises:
        DataError: x does not fit a program.
        ConfigError: there are no models, likelihoods are of both kinds, or `log_evidence`
            rejects an argument.

    References:
        Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
        Vehtari, Gelman & Gabry, 2017, https://arxiv.org/abs/1507.04544 (paired errors)

    Example:
        >>> import torch, pyrovae as pv
        >>> models = {p: pv.build((2,), latent_dim=1, prior=p) for p in ("StandardNormal",)}
        >>> found = compare_priors(models, torch.eye(2), num_samples=100)
        >>> [(row.name, row.difference.value) for row in found.rows]
        [('StandardNormal', 0.0)]
    """
    if not isinstance(models, Mapping) or not models or "num_data" in options:
        raise ConfigError(
            f"models is a {type(models).__name__}, but must map at least one name to a program, "
            "and num_data is not allowed, because all models need the same rows.\n"
            'Write compare_priors({"normal": vae, "vamp": other}, x).'
        )
    method = method_of(method, options)
    options = {"method": method, "num_globals": num_globals, "seed": seed}
    options["memory_budget"] = memory_budget
    blind = {name for name, m in models.items() if not sees_covariates(m)}
    blind = blind if len(blind) < len(models) else set()  # then y is a mistake and is rejected
    data = {name: (x, None if name in blind else y, mask) for name in models}
    _check_kinds({name: is_discrete(m, *data[name]) for name, m in models.items()})
    evidence = {name: log_evidence(m, *data[name], **options) for name, m in models.items()}
    order = sorted(models, key=lambda name: -evidence[name].log_px.mean().item())
    best = evidence[order[0]].log_px
    rows = []
    for rank, name in enumerate(order):
        found = evidence[name]
        parts = decompose_elbo(models[name], *data[name], seed=seed)
        rows.append(
            ComparedModel(
                name,
                rank,
                mean_of(found.log_px),
                mean_of(best - found.log_px),
                (found.std_error**2).mean().item() / 2,  # E log p̂ ≈ log p − Var(log p̂) / 2
                found.upper.isinf().double().mean().item(),
                parts.mean_elbo,
                parts.mean_reconstruction,
                parts.mean_kl,
                parts.mutual_information,
                parts.marginal_kl,
            )
        )
    return Comparison(tuple(rows), {name: evidence[name].log_px for name in order})


def _check_kinds(kinds: dict[str, bool | None]) -> None:
    """Raise ConfigError if some likelihoods are probabilities and others densities."""
    of = {kind: next((n for n, k in kinds.items() if k is kind), None) for kind in (True, False)}
    if None not in of.values():
        raise ConfigError(
            f"{of[True]!r} gives x a probability, {of[False]!r} a density per unit of x, so the "
            "difference of their log p(x) does not tell which is better.\n"
            "Compare models whose likelihoods are all discrete, or all continuous."
        )

"""Export to ArviZ: draws of prior, posterior and predictives as named arrays.

    group                  variables (dimensions)
    posterior              z (chain, draw, datum, latent); other sites …_dim_0, …; with predictive
                           groups also c ~ p(c|x, z) for discrete latents that are summed out
    posterior_predictive   x (chain, draw, datum, x_dim_0, …), and other observed sites
    prior                  z (chain, draw, datum, latent): a draw of the latents of each datum
    prior_predictive       x: replicated data sets
    observed_data          x (datum, x_dim_0, …), NaN where masked
    constant_data          label, y, mask (datum, …), if given
    log_likelihood         x (chain, draw, datum), log p(x|z), nats, for each observed site
    log_prior              z (chain, draw, datum), log p(z), nats
    sample_stats           log_guide, log_weight (chain, draw, datum), nats;
                           pareto_k, elbo (datum) of the guide, from as many draws
                           (without log_weight and pareto_k if data share a latent);
                           of "hmc" also acceptance_rate, diverging, step_size, energy, n_steps
                           (chain, draw, datum)

The container is an `arviz.InferenceData` for arviz < 1 and an `xarray.DataTree` since arviz 1, with
the same datasets. `container` and `records` alone import arviz and xarray, and only when called.

Avoid: `az.loo` of log p(x_n|z_n), whose z_n was inferred from x_n (compare models with
`diagnostics.compare_priors`); R̂ and ESS of the i.i.d. draws of a guide, which carry no
information; `az.psens` over many data at once, whose weights degenerate (select one datum, or
use `diagnostics.prior_sensitivity`).
"""

from pyrovae.arviz_io.container import has_datatree
from pyrovae.arviz_io.draws import to_arviz
from pyrovae.arviz_io.predictive import predictive_to_arviz
from pyrovae.arviz_io.records import comparison_to_arviz, history_to_arviz

__all__ = [
    "comparison_to_arviz",
    "has_datatree",
    "history_to_arviz",
    "predictive_to_arviz",
    "to_arviz",
]

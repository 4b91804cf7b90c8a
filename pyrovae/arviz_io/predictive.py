"""Output of Pyro's `Predictive`, exported to ArviZ."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.arviz_io.container import Variables, attributes_of, container_of, of_draws
from pyrovae.arviz_io.observed import data_groups, labels_of
from pyrovae.checks import as_tensor, warn_caller
from pyrovae.data import Batch
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.ambient import exclusive


@exclusive
def predictive_to_arviz(
    samples: Mapping[str, Tensor],
    x: Any = None,
    *,
    labels: Any = None,
    group: str = "posterior",
    shared: Collection[str] = (),
) -> Any:
    """Export draws of `pyro.infer.Predictive` as ArviZ groups.

    The site "x" becomes group + "_predictive", all others become group. If the model is
    conditioned on x, like a `VAE`'s, `Predictive` returns the data themselves as "x" in each
    draw. These are not replicates, so that group is left out, with a warning. Wrap the model in
    `poutine.uncondition` for replicates.

    Args:
        samples: the output of `Predictive(…)(x)`: site → (S, N, *event).
        x: (N, *event), for observed_data; None leaves the group out.
        labels: (N,), for constant_data, if x is given.
        group: "posterior" or "prior", the distribution of the latents.
        shared: names of sites outside the plate "data", which have no dimension "datum".

    Returns:
        arviz.InferenceData for arviz < 1, xarray.DataTree since arviz 1.

    Raises:
        ConfigError: the group is unknown, or there are no samples.
        DataError: sites differ in their number of draws, or there is not one label per datum.

    Example:
        >>> import pyrovae as pv
        >>> from pyro import poutine
        >>> import pyro
        >>> from pyro.infer import Predictive
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x, model = torch.ones(5, 2), poutine.uncondition(vae.model)
        >>> with pyro.get_param_store().scope():
        ...     samples = Predictive(model, guide=vae.guide, num_samples=10)(x)
        >>> dict(predictive_to_arviz(samples, x).posterior_predictive["x"].sizes)
        {'chain': 1, 'draw': 10, 'datum': 5, 'x_dim_0': 2}
    """
    if group not in ("posterior", "prior") or not samples:
        raise ConfigError(
            f"group = {group!r} with {len(samples)} sites, but there must be samples of the "
            "'posterior' or the 'prior'.\nPass the output of pyro.infer.Predictive(…)(x)."
        )
    sizes = {name: len(value) for name, value in samples.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"the sites have different numbers of draws, {sizes}, but each row must be one draw of "
            "all sites.\nPass the samples of a single Predictive."
        )
    arrays = of_draws({name: value[None] for name, value in samples.items()}, shared)
    data = None if x is None else Batch(x).map_named(as_tensor)
    observed = {"x": None} if data is None else {n: site.x for n, site in data.sites.items()}
    is_data = [n for n, x in observed.items() if n in samples and _is_one_data_set(samples[n], x)]
    if is_data:
        warn_caller(_NOT_PREDICTIVE.replace("x", is_data[0], 1))
        arrays = {name: value for name, value in arrays.items() if name not in is_data}
    latents = {name: value for name, value in arrays.items() if name not in observed}
    groups: dict[str, Variables] = {group: latents} if latents else {}
    if len(latents) < len(arrays):
        replicates = {name: value for name, value in arrays.items() if name in observed}
        groups[f"{group}_predictive"] = replicates
    if data:
        groups |= data_groups(data, observed, labels_of(labels, data.num_data))
    return container_of(groups, attributes_of(posterior="Predictive"))


_NOT_PREDICTIVE = (
    '"x" is the same data set in every draw: Predictive returned the data that the model was '
    "conditioned on, not replicates, so there is no predictive group.\n"
    "For replicates write Predictive(poutine.uncondition(vae.model), guide=vae.guide, …)(x)."
)


def _is_one_data_set(draws: Tensor, x: Tensor | None) -> bool:
    """Return whether (S, N, *event) is S copies of one data set; for S = 1, of x."""
    if len(draws) > 1:
        return bool((draws == draws[:1]).all())
    return x is not None and torch.equal(draws[0], x.to(draws))

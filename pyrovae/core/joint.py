"""Functions of a program's latents at fixed data: p(z), p(x|z) and q(z|x), per datum.

    terms(z) → log p(z), log p(x|z)      log_guide(z) → log q(z|x)      (S, N) each, nats
    draw_prior(S), draw_guide(S) → z     weighted_draws(S) → z, log w

A guide that draws other sites than z has no log_guide: `scores_latents` is false.

z is a dict of sites, each (S, N, *event). Two classes have this interface: `VAEJoint` calls the
three parts directly, and the encoder once regardless of the number of draws; `ProgramJoint`
runs any other program, whose local sites may depend on each other, under Pyro's handlers.
Latents outside the plate "data" are rejected, because log p(x_i | w) does not depend on datum i
alone.

`Unconstrained` provides the same in coordinates u on the real line, which Hamiltonian moves need:

    z = T(u),   log p_u(u) = log p(T(u)) + log |det ∂T/∂u|,   T = biject_to(support of p(z))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.contract.layout import layouts_of
from pyrovae.core.marginal import drawn
from pyrovae.core.repeated import Repeated
from pyrovae.core.replay import nothing
from pyrovae.core.terms import ElboTerms, draw_traces, is_local
from pyrovae.core.vectorized import terms_at, vectorization_of
from pyrovae.data import Batch
from pyrovae.densities.supports import support_of, transform_onto
from pyrovae.errors import ConfigError
from pyrovae.networks import given
from pyrovae.vae import VAE, is_plain_vae, log_likelihood, visible

Latents = dict[str, Tensor]


def joint_of(program: nn.Module, batch: Batch) -> "VAEJoint | ProgramJoint":
    """Return the program's functions at these data.

    Args:
        program: a program in eval mode, inside its own parameter store.
        batch: validated data.

    Raises:
        ConfigError: the program has latents outside the plate "data".
    """
    return VAEJoint(program, batch) if is_plain_vae(program) else ProgramJoint(program, batch)


class VAEJoint:
    """p(z), p(x|z) and q(z|x) of a `VAE` at fixed data; the encoder runs once."""

    def __init__(self, vae: VAE, batch: Batch):
        x, y, mask = batch
        self.decoder, self.batch = vae.decoder, batch
        self.prior = vae.prior(*given(y, vae.prior))
        self.guide = vae.encoder(*visible(x, mask, vae.encoder), *given(y, vae.encoder))
        self.scores_latents = True
        self.supports = {"z": support_of(self.prior) or self.prior.support}

    def terms(self, z: Latents) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log p(x|z) at z (S, N, D), (S, N) each."""
        x, y, mask = self.batch
        p_x = self.decoder(z["z"], *given(y, self.decoder))
        return self.prior.log_prob(z["z"]), log_likelihood(p_x, x, mask)

    def log_likelihoods(self, z: Latents) -> Latents:
        """Return log p of each observed site at z, (S, N)."""
        return {"x": self.terms(z)[1]}

    def log_guide(self, z: Latents) -> Tensor:
        return self.guide.log_prob(z["z"])

    def draw_prior(self, num_samples: int) -> Latents:
        batch_shape = (len(self.batch.x),)
        return {"z": self.prior.expand(batch_shape).sample((num_samples,))}

    def draw_guide(self, num_samples: int) -> Latents:
        return {"z": self.guide.sample((num_samples,))}

    def weighted_draws(self, num_samples: int) -> tuple[Latents, Tensor]:
        """Draw z ~ q(z|x), with log w = log p(x, z) − log q(z|x), (S, N)."""
        z = self.draw_guide(num_samples)
        log_prior, log_likelihood = self.terms(z)
        return z, log_likelihood + log_prior - self.log_guide(z)


class ProgramJoint:
    """The same functions of any program with one plate "data", computed from traces.

    `terms` no longer runs Pyro's handlers once it is called often (`core.repeated`).
    """

    def __init__(self, program: nn.Module, batch: Batch):
        self.program, self.batch = program, batch
        traces = draw_traces(program.model, program.guide, *batch)
        sites = dict(traces.model.iter_stochastic_nodes())
        outside = [n for n, site in sites.items() if not is_local(site)]
        if outside:
            raise ConfigError(
                f"the latent {outside[0]!r} is outside the plate 'data': all data share it, so "
                "log p(x) is not a sum over data and cannot be estimated per datum.\n"
                "elbo_terms(…).total_elbo bounds the evidence of all data together."
            )
        self.supports = {n: support_of(s["fn"]) or s["fn"].support for n, s in sites.items()}
        guide_sites = [name for name, _ in traces.guide.iter_stochastic_nodes()]
        hidden = getattr(program, "hidden_in_guide", [])
        self.auxiliary = [*hidden, *(name for name in guide_sites if name not in sites)]
        self.scores_latents = not self.auxiliary
        self.layouts = layouts_of(*traces)
        self.vectorization = vectorization_of(program, batch)
        self.terms = Repeated(self._terms_of_model, program)

    def _terms_of_model(self, z: Latents) -> tuple[Tensor, Tensor]:
        terms = self._replayed(self.program.model, z)
        return terms.log_prior, terms.log_likelihood

    def log_likelihoods(self, z: Latents) -> Latents:
        return dict(self._replayed(self.program.model, z).log_likelihoods)

    def log_guide(self, z: Latents) -> Tensor:
        if self.auxiliary:
            raise ConfigError(
                f"the guide draws {self.auxiliary[0]!r} besides these latents, so its density at "
                "given latents is unknown: only its own draws can be weighted.\n"
                "Use log_evidence by 'iwae', or by 'ais' with start='prior', or posterior.hmc."
            )
        return self._replayed(self.program.guide, z).log_prior

    def draw_prior(self, num_samples: int) -> Latents:
        latents = self._terms(drawn(self.program.model), nothing, num_samples).latents
        return {name: latents[name] for name in self.supports}

    def draw_guide(self, num_samples: int) -> Latents:
        latents = self._terms(drawn(self.program.guide), nothing, num_samples).latents
        return {name: latents[name] for name in self.supports}

    def weighted_draws(self, num_samples: int) -> tuple[Latents, Tensor]:
        terms = self._terms(self.program.model, self.program.guide, num_samples)
        return terms.latents, terms.log_weights

    def _replayed(self, program: Callable, z: Latents) -> ElboTerms:
        return self._terms(program, z, len(next(iter(z.values()))))

    def _terms(self, model: Callable, guide: Callable | Latents, num_samples: int) -> ElboTerms:
        how = {"vectorization": self.vectorization, "layouts": self.layouts}
        return terms_at(model, guide, self.batch, num_samples, **how)


class Site(NamedTuple):
    """A latent as a slice of u.

    Attributes:
        transform: T, from the real line to the support of p(z).
        shape: shape of one unconstrained value.
    """

    transform: Any
    shape: torch.Size


class Unconstrained:
    """p and q of a program at fixed data over u (S, N, D), z = T(u); D counts all sites.

    Args:
        joint: as returned by `joint_of`.
        method: name of the caller, for the error.

    Raises:
        ConfigError: a latent is discrete, or its support has no map from the real line.
    """

    def __init__(self, joint: VAEJoint | ProgramJoint, *, method: str):
        self.joint = joint
        transforms = {n: _transform(n, s, method) for n, s in joint.supports.items()}
        one = joint.draw_prior(1)
        self.sites = {n: Site(t, t.inv(one[n]).shape[2:]) for n, t in transforms.items()}

    def latents(self, u: Tensor) -> Latents:
        """Return z = T(u), by site."""
        sizes = [site.shape.numel() for site in self.sites.values()]
        return {
            name: site.transform(part.reshape(*u.shape[:2], *site.shape))
            for (name, site), part in zip(self.sites.items(), u.split(sizes, -1), strict=True)
        }

    def coordinates(self, z: Latents) -> Tensor:
        """Return u = T⁻¹(z), (S, N, D)."""
        return flat({name: site.transform.inv(z[name]) for name, site in self.sites.items()})

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p_u(u) and log p(x|T(u)), (S, N) each, nats."""
        z = self.latents(u)
        log_prior, log_likelihood = self.joint.terms(z)
        return log_prior + self._log_jacobian(u, z), log_likelihood

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q_u(u|x), (S, N), nats."""
        z = self.latents(u)
        return self.joint.log_guide(z) + self._log_jacobian(u, z)

    def draw_prior(self, num_samples: int) -> Tensor:
        return self.coordinates(self.joint.draw_prior(num_samples))

    def draw_guide(self, num_samples: int) -> Tensor:
        return self.coordinates(self.joint.draw_guide(num_samples))

    def _log_jacobian(self, u: Tensor, z: Latents) -> Tensor:
        sizes = [site.shape.numel() for site in self.sites.values()]
        total = torch.zeros_like(u[..., 0])
        for (name, site), part in zip(self.sites.items(), u.split(sizes, -1), strict=True):
            part = part.reshape(*u.shape[:2], *site.shape)
            log_det = site.transform.log_abs_det_jacobian(part, z[name])
            total = total + log_det.reshape(*u.shape[:2], -1).sum(-1)
        return total


def flat(latents: Latents) -> Tensor:
    """Concatenate all sites, (S, N, D), in the order of the model.

    Example:
        >>> flat({"a": torch.zeros(4, 3), "b": torch.zeros(4, 3, 2, 2)}).shape
        torch.Size([4, 3, 5])
    """
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in latents.values()], -1)


def by_site(flat: Tensor, like: Latents) -> Latents:
    """Split (S, n, D) into sites as in `like`, each (S, n, *event) in its dtype.

    Example:
        >>> like = {"a": torch.ones(1, 3), "b": torch.ones(1, 3, 2, 2)}
        >>> by_site(torch.zeros(4, 3, 5), like)["b"].shape
        torch.Size([4, 3, 2, 2])
    """
    parts = flat.split([value[0, 0].numel() for value in like.values()], -1)
    return {
        name: part.reshape(*flat.shape[:2], *value.shape[2:]).to(value.dtype)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


def _transform(name: str, support: Any, method: str) -> Any:
    try:
        return transform_onto(support)
    except NotImplementedError:
        kind = "discrete" if support.is_discrete else "not mapped from the real line"
        raise ConfigError(
            f"{method} moves latents along gradients on the real line, but the support of "
            f"{name!r}, {support}, is {kind}.\n"
            "Use method='enumerate' for few discrete values, else 'importance' or posterior.sir."
        ) from None

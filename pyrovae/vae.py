"""The VAE: one object with two interpretations.

    probability model   z_i ~ p(z),  x_i ~ p(x|z_i);     p(x, z) = p(x|z) p(z)
    neural net          l_i = −E_q[log p(x_i|z)] + KL(q(z|x_i) ‖ p(z))

`VAE.model` and `VAE.guide` are the first, as Pyro programs; `VAE.loss` is the second,
as a plain function of tensors. Bayes' rule p(z|x) = p(x|z) p(z) / p(x) connects
them: with ELBO_i = −l_i,  log p(x_i) = ELBO_i + KL(q(z|x_i) ‖ p(z|x_i)).

Symbols: x (B, *event), z (B, D), y (B, …) covariates, mask of x's shape with true =
observed. This file depends on no particular prior, guide family, likelihood or network.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence

from pyrovae.checks import (
    as_tensor,
    check_event_shape,
    check_finite,
    real_number,
    seed_number,
    whole_number,
)
from pyrovae.checks.supports import inside
from pyrovae.contract.covariates import as_covariates, like_parameters
from pyrovae.contract.parts import check_parts
from pyrovae.contract.validator import validated
from pyrovae.data import Schema
from pyrovae.data.batch import spread
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import evaluation
from pyrovae.networks import Given, given
from pyrovae.runtime.ambient import exclusive, in_full_precision
from pyrovae.runtime.modes import module_mode
from pyrovae.runtime.random_stream import RandomStream


class LossTerms(NamedTuple):
    """The two terms of the loss, in nats per datum; loss = reconstruction + kl.

    Attributes:
        reconstruction: (B,), −log p(x|z) at one draw z ~ q(z|x); lower is better.
        kl: (B,), KL(q(z|x) ‖ p(z)), exact or at the same draw.
        is_kl_analytic: whether kl is the closed form, rather than log q(z|x) − log p(z).
    """

    reconstruction: Tensor
    kl: Tensor
    is_kl_analytic: bool


class VAE(nn.Module):
    """Variational autoencoder of a prior p(z), an encoder q(z|x) and a decoder p(x|z).

    Args:
        prior: module, `prior()` → p(z), batch_shape (), event_shape (D,).
        encoder: module, `encoder(x)` → q(z|x), batch_shape (B,), event_shape (D,).
        decoder: module, `decoder(z)` → p(x|z), batch_shape z.shape[:-1], event_shape
            x.shape[1:]. A part wrapped in `networks.Given` also takes y, last; an encoder that is
            `networks.SeesMask` takes the mask before it.

    Raises:
        ConfigError: a part is not a module.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> from torch.nn import Sequential
        >>> from pyrovae import guides, likelihoods, networks, priors
        >>> q, p = guides.DiagonalNormal(2), likelihoods.Bernoulli((8, 8))
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     Sequential(networks.mlp((8, 8), q.num_features), q),
        ...     Sequential(networks.mlp(2, p.num_features), p),
        ... )
        >>> x = torch.ones(7, 8, 8)
        >>> vae.loss(x).shape, vae.encode(x).event_shape, vae.sample(3).shape
        (torch.Size([7]), torch.Size([2]), torch.Size([3, 8, 8]))
    """

    def __init__(self, prior: nn.Module, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        for name, part in {"prior": prior, "encoder": encoder, "decoder": decoder}.items():
            if isinstance(part, type):
                raise ConfigError(
                    f"{name} is the class {part.__name__}, but a part is an nn.Module.\n"
                    f"Construct it: {part.__name__}(…)."
                )
            if not isinstance(part, nn.Module):
                fix = "Join a network and a head: torch.nn.Sequential(network, head)."
                if name == "prior" or isinstance(part, torch.distributions.Distribution):
                    fix = "Wrap a distribution as priors.Fixed(constructor, **tensors)."
                raise ConfigError(
                    f"{name} is a {type(part).__name__}, but a part is an nn.Module whose call "
                    f"returns a density; only a module moves with .to() and saves.\n{fix}"
                )
        self.prior, self.encoder, self.decoder = prior, encoder, decoder
        self.schema: Schema | None = None  # names of columns and classes of its data

    def forward(self, *args: object) -> None:
        """Raise ConfigError, because a VAE has no single output."""
        raise ConfigError(
            "a VAE has no single output, so vae(x) is undefined.\n"
            "Write vae.loss(x), vae.encode(x), vae.reconstruct(x) or vae.sample(n)."
        )

    @property
    def sees_covariates(self) -> bool:
        """Whether y has an effect: a part is wrapped in `networks.Given`.

        A subclass with a custom model or guide may use it there.
        """
        is_own = type(self).model is not VAE.model or type(self).guide is not VAE.guide
        parts = (self.prior, self.encoder, self.decoder)
        return is_own or any(isinstance(part, Given) for part in parts)

    def check_parts(self, x: Tensor, y: Tensor | None, mask: Tensor | None) -> None:
        """Raise ConfigError unless the parts fulfill their contract on these two rows."""
        seen = visible(x, mask, self.encoder)
        check_parts(self.prior, self.encoder, self.decoder, x, y, seen)

    # The probabilistic interpretation.

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z) = p(x|z) p(z) as a Pyro program: plate "data", sites "z" and "x".

        Args:
            x: (B, *event), the observed data.
            y: (B, …), covariates for the parts wrapped in `Given`.
            mask: of x's shape, true where x is observed.

        Example:
            >>> import pyrovae as pv
            >>> from pyro import poutine
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> with pv.handlers.own_store(), poutine.trace() as tracer:
            ...     vae.model(torch.ones(3, 2))
            >>> [site for site in tracer.trace.nodes if site in ("z", "x")]
            ['z', 'x']
        """
        register(self)
        p_z = self.prior(*given(y, self.prior))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", p_z)
            p_x = self.decoder(z, *given(y, self.decoder))
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x) as a Pyro program: plate "data", site "z". Arguments as for `model`."""
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encoder(*visible(x, mask, self.encoder), *given(y, self.encoder)))

    # The neural-network interpretation.

    def loss(self, x: Any, y: Any = None, mask: Any = None, *, analytic_kl: bool = True) -> Tensor:
        """Return l_i = −E_q[log p(x_i|z)] + KL(q(z|x_i) ‖ p(z)) at one draw of z; lower is better.

        It is meant for custom training loops: differentiable, and in the module's own train or
        eval mode, unlike all other methods, which run in eval mode. Its sum over the data is the
        loss of Pyro's `TraceMeanField_ELBO` (or, with analytic_kl=False, of `Trace_ELBO`) on the
        same draw.

        Args:
            x: (B, *event).
            y: (B, …), covariates.
            mask: of x's shape, true where x is observed.
            analytic_kl: whether to use the closed form of the KL if torch has one.

        Returns:
            (B,), nats per datum.

        Raises:
            DataError: x does not fit the decoder; raised before anything is drawn.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.loss(torch.ones(3, 2)).shape
            torch.Size([3])
        """
        terms = self.loss_terms(x, y, mask, analytic_kl=analytic_kl)
        return terms.reconstruction + terms.kl

    @exclusive
    def loss_terms(
        self, x: Any, y: Any = None, mask: Any = None, *, analytic_kl: bool = True
    ) -> LossTerms:
        """Return the two terms of `loss` and whether the KL is analytic. Arguments as for `loss`.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.loss_terms(torch.ones(3, 2)).is_kl_analytic
            True
        """
        x, y, mask = validated(self, x, y, mask).whole()
        p_z = self.prior(*given(y, self.prior))
        q_z = self.encoder(*visible(x, mask, self.encoder), *given(y, self.encoder))
        z = q_z.rsample() if q_z.has_rsample else q_z.sample()
        p_x = self.decoder(z, *given(y, self.decoder))
        return LossTerms(
            -log_likelihood(p_x, x, mask), *kl_to_prior(q_z, p_z, z, analytic=analytic_kl)
        )

    @exclusive
    def encode(self, x: Any, y: Any = None, mask: Any = None) -> dist.Distribution:
        """Return q(z|x): batch_shape (B,), event_shape (D,), in eval mode.

        Arguments and errors are those of `loss`.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.encode(torch.ones(3, 2)).mean.shape
            torch.Size([3, 1])
        """
        x, y, mask = validated(self, x, y, mask).whole()
        with module_mode(self, training=False), in_full_precision():
            return self.encoder(*visible(x, mask, self.encoder), *given(y, self.encoder))

    @exclusive
    def decode(self, z: Any, y: Any = None) -> dist.Distribution:
        """Return p(x|z): batch_shape z.shape[:-1], for z (*S, B, D), in eval mode.

        Raises:
            DataError: z is not finite, has no batch dimension, or differs from y in rows.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.decode(torch.zeros(3, 1)).mean.shape
            torch.Size([3, 2])
        """
        z = like_parameters(as_tensor(z, "z"), self)
        check_finite(z, name="z")
        if z.dim() < 2:
            raise DataError(
                f"z has shape {tuple(z.shape)}, but it holds one latent vector per row: (B, D).\n"
                "Add a batch dim: z[None]."
            )
        y = as_covariates(y, z.shape[-2], self)
        try:
            with module_mode(self, training=False), in_full_precision():
                return self.decoder(z, *given(y, self.decoder))
        except RuntimeError as error:
            width = self.prior(*given(y, self.prior)).event_shape[-1]
            if z.shape[-1] == width:
                raise
            raise DataError(
                f"z has shape {tuple(z.shape)}, but p(z) is over vectors of {width}: the decoder "
                f"takes (*S, B, {width}).\nPass latents of this model, such as encode(x).mean."
            ) from error

    @exclusive
    def reconstruct(
        self, x: Any, y: Any = None, mask: Any = None, *, seed: int | None = None
    ) -> Tensor:
        """Return E[x|z] at one draw z ~ q(z|x): (B, *event), in the units of x, in eval mode.

        Args:
            x: (B, *event); y and mask as for `loss`.
            seed: the seed of the draw; None uses the global generator.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.reconstruct(torch.ones(3, 2), seed=0).shape
            torch.Size([3, 2])
        """
        with own_draws(seed), evaluation(self):
            return self.decode(self.encode(x, y, mask).sample(), y).mean

    @exclusive
    def sample(
        self,
        n: int,
        y: Any = None,
        *,
        temperature: float = 1.0,
        mean: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """Draw n data by ancestral sampling, z ~ p(z) then x ~ p(x|z): (n, *event), in eval mode.

        Args:
            n: the number of draws.
            y: (n, …), covariates; or one label, for all draws.
            temperature: T > 0, a factor of the prior's scale (`densities.tempered`); only at T = 1
                are draws those of the model.
            mean: return E[x|z] in place of draws of x.
            seed: the seed of the draws; None uses the global generator.

        Raises:
            ConfigError: n is not a whole number ≥ 1, or temperature is not 1 and the prior has no
                scale.

        Example:
            >>> import pyrovae as pv
            >>> vae = pv.build((2,), latent_dim=1, seed=0)
            >>> vae.sample(4, seed=0).shape
            torch.Size([4, 2])
        """
        n = whole_number(n, "n", 1)
        temperature = real_number(temperature, "temperature", above=0)
        y = as_covariates(_for_all(y, n), n, self)
        with own_draws(seed), evaluation(self):
            p_z = self.prior(*given(y, self.prior))
            if temperature != 1:
                from pyrovae.densities.tempered import tempered

                p_z = tempered(p_z, temperature)
            p_x = self.decode(p_z.expand([n]).sample(), y)
            return p_x.mean if mean else p_x.sample()


def _for_all(y: Any, n: int) -> Any:
    """Return one label as the label of n data; others unchanged."""
    if y is None or isinstance(y, list | tuple):
        return y
    y = as_tensor(y, "y")
    return y.expand(n) if y.dim() == 0 else y


def register(module: nn.Module, name: str = "vae") -> None:
    """Register the trainable parameters with Pyro, unless the store holds another object's.

    `pyro.module` would train the object registered first, silently leave this one untrained
    (pyro issues 1488, 3094, 3209), and warn about each frozen parameter.

    Raises:
        ConfigError: the store holds another object's parameters under this name.
    """
    store = pyro.get_param_store()
    for parameter_name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        key = param_with_module_name(name, parameter_name)
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()  # the store would train a copy of it
        if key in store and store[key] is not parameter:
            raise ConfigError(
                f"Pyro's parameter store already holds another module's parameters as {name!r} "
                f"(at {parameter_name!r}): Pyro would train that one and leave this one untouched."
                "\nGive each module its own store around its steps and predictions:\n"
                "    with pyro.get_param_store().scope():\n"
                "        svi = SVI(vae.model, vae.guide, …)"
            )
        pyro.param(key, parameter)


def kl_to_prior(
    q_z: dist.Distribution, p_z: dist.Distribution, z: Tensor, *, analytic: bool = True
) -> tuple[Tensor, bool]:
    """Return KL(q ‖ p), (B,), nats: the closed form if torch has one, else log q(z) − log p(z).

    Args:
        q_z: q(z|x), batch_shape (B,).
        p_z: p(z), batch_shape () or (B,).
        z: (B, D), a draw from q_z.
        analytic: whether to use the closed form.

    Returns:
        The KL, and whether it is analytic.

    Example:
        >>> q, p = dist.Normal(torch.ones(1), 1.0), dist.Normal(0.0, 1.0)
        >>> kl_to_prior(q, p, torch.zeros(1))
        (tensor([0.5000]), True)
    """
    if analytic:
        try:
            return kl_divergence(q_z, p_z), True
        except NotImplementedError:
            pass
    return q_z.log_prob(z) - p_z.log_prob(z), False


def fill(
    x: Tensor, mask: Tensor | None, support: constraints.Constraint = constraints.real
) -> Tensor:
    """Fill the unobserved cells of x with a constant of the support, so that NaN has no effect.

    Masking a log-density is not enough: the gradient of a NaN times zero is NaN.

    Args:
        x: (B, *event).
        mask: of x's shape, or (B,) for whole data; true where x is observed.
        support: of x, of one number in it, or of its columns (`constraints.cat`).

    Example:
        >>> fill(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]]))
        tensor([[1., 0.]])
    """
    if mask is None:
        return x
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return torch.where(spread(mask, x), x, inside(support, x.dtype, x.device))


def visible(x: Tensor, mask: Tensor | None, part: nn.Module) -> tuple[Tensor, ...]:
    """Return what a part of x sees: x with missing cells filled, and the mask if it is `SeesMask`.

    Missing cells are 0, or the part's own `neutral` values (`networks.Transformed`).

    Args:
        x: (B, *event).
        mask: of x's shape, or (B,) for whole data; true where x is observed.
        part: an encoder, or another module of x.

    Example:
        >>> x, mask = torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])
        >>> visible(x, mask, nn.Identity())
        (tensor([[1., 0.]]),)
        >>> from pyrovae.networks import SeesMask
        >>> visible(x, mask, SeesMask(nn.Identity()))
        (tensor([[1., 0.]]), tensor([[ True, False]]))
    """
    neutral = getattr(part, "neutral", None)
    filled = fill(x, mask) if mask is None or neutral is None else _filled_with(neutral, x, mask)
    if not getattr(part, "sees_mask", False):
        return (filled,)
    return filled, torch.ones_like(x, dtype=torch.bool) if mask is None else spread(mask, x)


def _filled_with(value: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(spread(mask, x), x, value.to(x.dtype))


def observed_only(p_x: dist.Distribution, mask: Tensor | None) -> dist.Distribution:
    """Return p(x_observed | z), the density without the log-factors of unobserved cells.

    A mask of cells is applied inside the Independent; around the site it would broadcast against
    the batch. A mask (B,) leaves out whole data, of any likelihood.

    Raises:
        ConfigError: cells are masked, but p_x does not factorize over the cells of its event.
    """
    if mask is None:
        return p_x
    if mask.dim() == 1:
        return p_x.mask(mask)
    base = p_x.base_dist if isinstance(p_x, dist.Independent) else p_x
    if base.event_shape:
        raise ConfigError(
            f"mask= needs a likelihood that factorizes over the cells of x, but "
            f"{type(base).__name__} has event_shape {tuple(base.event_shape)}: leaving out a cell "
            "does not give a marginal.\nUse an elementwise likelihood, or drop the mask."
        )
    return base.mask(mask).to_event(len(p_x.event_shape))


def log_likelihood(p_x: dist.Distribution, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return log p(x_observed | z) in nats, of p_x's batch shape.

    Example:
        >>> p_x = dist.Bernoulli(torch.full((1, 2), 0.5)).to_event(1)
        >>> log_likelihood(p_x, torch.ones(1, 2), None)
        tensor([-1.3863])
    """
    if mask is None:
        return p_x.log_prob(x)
    return observed_only(p_x, mask).log_prob(fill(x, mask, p_x.support))


def own_draws(seed: int | None) -> AbstractContextManager:
    """Return a context with a random stream of this seed, or the global one for None."""
    return nullcontext() if seed is None else RandomStream(seed_number(seed))


def is_plain_vae(program: nn.Module) -> bool:
    """Return whether the program is `VAE.model` and `VAE.guide`, so that its parts define it."""
    kind = type(program)
    return isinstance(program, VAE) and (kind.model, kind.guide) == (VAE.model, VAE.guide)

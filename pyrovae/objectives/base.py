"""Base class of the objectives: an ELBO that SVI accepts, as a function of a pair of traces.

A subclass defines `surrogate`, a scalar whose value is the loss and whose gradient is that
of the step. Unlike Pyro's own objectives, none calls `.item()`, so a step needs no
synchronization and can be traced as one graph. The scale that handlers put on the plate
"data" multiplies per-datum losses, outside any log-sum-exp.
"""

from typing import Any, ClassVar

from pyro.infer import ELBO
from torch import Tensor

from pyrovae.checks import whole_number
from pyrovae.core.terms import Traces, draw_traces, is_local
from pyrovae.data.batch import num_rows
from pyrovae.errors import ConfigError


class Objective(ELBO):
    """Base class of the objectives; subclasses define the loss of a pair of traces.

    Args:
        num_particles: the number of draws of z per datum and step.

    Attributes:
        progress: the fraction of the planned steps that is done, in [0, 1]; `fit` sets it
            before each step. A surrogate reads schedules through `weight`, so it can be traced.
        needs_reparameterized: whether the gradient flows through z only.
        needs_local_latents: whether the bound is per datum, without global latents.

    Raises:
        ConfigError: num_particles is not a whole number ≥ 1.

    Example:
        >>> class Reconstruction(Objective):
        ...     def surrogate(self, traces, num_data):
        ...         return -terms_of(traces, num_data).log_likelihood.sum(-1).mean()
        >>> from pyrovae.core.terms import terms_of
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> len(pv.fit(vae, torch.ones(3, 2), objective=Reconstruction(), epochs=2))
        2
    """

    needs_reparameterized: ClassVar[bool] = False
    needs_local_latents: ClassVar[bool] = False
    detaches_draws: ClassVar[bool] = False

    def __init__(self, num_particles: int = 1):
        super().__init__(num_particles=whole_number(num_particles, "num_particles", 1))
        self.progress = 0.0
        self.given_weights: dict[str, Tensor] = {}

    def weights(self) -> dict[str, float]:
        """Return the numbers in the surrogate that change during training, by name."""
        return {}

    def weight(self, name: str) -> float | Tensor:
        """Return one of `weights`; in a traced step, the tensor that represents it."""
        return self.given_weights[name] if self.given_weights else self.weights()[name]

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        """Return the loss in nats, (), with the gradient of the step."""
        raise NotImplementedError("an objective must define surrogate(traces, num_data)")

    def check(self, traces: Traces) -> None:
        """Raise ConfigError if the gradient of this objective is wrong for the program."""
        name = type(self).__name__
        if self.needs_reparameterized and not is_reparameterized(traces):
            raise ConfigError(
                f"{name} takes its gradient through z, but a latent of the guide is not "
                "reparameterized: the guide would get a wrong gradient.\n"
                "Use objectives.TraceELBO() (score function), objectives.EnumELBO() (exact sum) "
                "or a relaxed guide."
            )
        if self.needs_local_latents and not all(map(is_local, _latents(traces.guide))):
            raise ConfigError(
                f"{name} is a bound per datum, but the program has a latent outside the plate "
                "'data'.\nUse objectives.TraceELBO() or objectives.BetaELBO(beta)."
            )

    def traces(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Traces:
        """Draw the traces for `surrogate`."""
        size, detach = self.num_particles, self.detaches_draws
        return draw_traces(model, guide, *args, num_samples=size, detach=detach, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        return self.traces(model, guide, *args, **kwargs)  # pyro.infer.ELBO asks for this name

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, (), with gradients; later arguments go to the program."""
        traces = self.traces(model, guide, *args, **kwargs)
        self.check(traces)
        return self.surrogate(traces, num_rows(args[0]))

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, (), without gradients."""
        return self.differentiable_loss(model, guide, *args, **kwargs).detach()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, (), and add its gradients to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()


def _latents(trace: Any) -> list[dict]:
    return [site for _, site in trace.iter_stochastic_nodes()]


def is_reparameterized(traces: Traces) -> bool:
    """Return whether every latent of the guide has `rsample`, so that z carries gradients."""
    return all(site["fn"].has_rsample for site in _latents(traces.guide))


def scale_of(traces: Traces) -> float | Tensor:
    """Return the scale of the plate "data" (N / B for a minibatch); 1 without handlers."""
    observed = [
        site["scale"]
        for site in traces.model.nodes.values()
        if site["type"] == "sample" and site["is_observed"] and is_local(site)
    ]
    return observed[0] if observed else 1.0


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a scalar equal to `value` whose gradient is that of `surrogate`."""
    return value.detach() + surrogate - surrogate.detach()


def scaled_total(per_datum: Tensor, traces: Traces) -> Tensor:
    """Sum per-datum losses (…, N), times the data scale, over the data: (S,) or ()."""
    return (scale_of(traces) * per_datum).sum(-1)

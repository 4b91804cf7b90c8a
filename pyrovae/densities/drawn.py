"""The log-density of a draw, known from how it was made.

z = f(u) gives log q(z) = log p(u) − log |det ∂f/∂u| beside it. Finding u again as f⁻¹(z) costs
more and loses digits: z is rounded, and f⁻¹ magnifies that where f squeezes space. With
log q(z) too small at its own draws, the ELBO would not be a bound.
"""

import torch
from torch import Tensor


class RemembersDraw:
    """For a density whose `rsample` calls `_remember`: log q(z) of the point drawn last.

    It is the number that f⁻¹ would give, with the same total derivative along z = f(u).
    Ask for ∂ log q / ∂z alone at `z.detach().requires_grad_()`.

    Example:
        >>> class Unit(RemembersDraw):
        ...     def rsample(self):
        ...         return self._remember(torch.zeros(1), torch.tensor(-1.0))
        >>> q = Unit()
        >>> with torch.no_grad():
        ...     q._remembered(q.rsample()), q._remembered(torch.zeros(1))
        (tensor(-1.), None)
    """

    _drawn: Tensor | None = None
    _log_prob_drawn: Tensor | None = None

    def _remember(self, z: Tensor, log_prob: Tensor) -> Tensor:
        """z itself, with log q(z) kept."""
        self._drawn, self._log_prob_drawn = z, log_prob
        return z

    def _remembered(self, value: Tensor) -> Tensor | None:
        """log q(value) if it is the point drawn last and its path is meant; else None."""
        if value is not self._drawn or self._log_prob_drawn is None:
            return None
        if not torch.is_grad_enabled():
            return self._log_prob_drawn.detach()
        # a leaf was drawn without its path: there the gradient at fixed z is meant
        return None if value.grad_fn is None else self._log_prob_drawn

"""The training monitor of `fit`: how latent space and gradient evolve during training.

Every n steps, always on the same rows, it records

    rate R = KL(q(z|x) ‖ p(z)), distortion D = −E_q[log p(x|z)], ELBO = −(R + D)
    KL per dimension, active units, mutual information I_q, marginal KL(q(z) ‖ p(z))
    signal to noise of the encoder's gradient, mean over its entries of |E g| / sd g

It draws from its own stream and leaves weights, buffers, gradients and modes unchanged, so that a
run with a monitor equals the run without one bit for bit.

References:
    Tighter Variational Bounds are Not Necessarily Better, Rainforth et al., 2018,
    https://arxiv.org/abs/1802.04537 (signal-to-noise ratio)
"""

import math
from typing import Any

import pyro
import torch
from torch import nn

from pyrovae.data import Batch
from pyrovae.diagnostics import collapsed_dimensions, decompose_elbo
from pyrovae.diagnostics.collapse import Collapse
from pyrovae.errors import ConfigError
from pyrovae.handlers import own_store
from pyrovae.runtime.buffers import BuffersBefore
from pyrovae.runtime.modes import module_mode
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.training.eager import EagerLoss

NUM_ROWS = 500  # training data used for a record
NUM_GRADIENTS = 10  # draws per signal-to-noise ratio


class Monitor:
    """Monitor of a program on a few rows of its training data, set by `select_rows`."""

    def __init__(self, program: nn.Module, loss: EagerLoss, seed: int):
        self.program, self.loss, self.seed = program, loss, seed
        self.rows: Batch | None = None

    def select_rows(self, batch: Batch) -> None:
        """Select at most 500 evenly spaced rows of a batch, or of all data."""
        size, num_rows = batch.num_data, min(batch.num_data, NUM_ROWS)
        index = torch.arange(num_rows) * (size - 1) // max(num_rows - 1, 1)
        self.rows = batch.rows(index)

    def record(self, step: int) -> dict[str, Any]:
        """Return a record: numbers in nats per datum, and lists of them by latent dimension."""
        found = decompose_elbo(self.program, *self.rows, num_samples=5, seed=self.seed)
        units = collapsed_dimensions(self.program, *self.rows, seed=self.seed)
        return {
            "step": step,
            "elbo": found.mean_elbo.value,
            "rate": found.mean_kl.value,
            "distortion": found.mean_reconstruction.value,
            "active_units": units.num_active,
            "mutual_information": found.mutual_information.value,
            "marginal_kl": found.marginal_kl.value,
            "kl_per_dimension": found.kl_per_dimension.mean(0).tolist(),
            "signal_to_noise": self.signal_to_noise(),
        }

    def signal_to_noise(self) -> float:
        """Estimate |E g| / sd g of the loss's gradient in the encoder, averaged over its entries.

        NaN if the encoder has no gradient, or one that does not vary.
        """
        encoder = getattr(self.program, "encoder", self.program)
        wanted = [p for p in encoder.parameters() if p.requires_grad]
        draws, buffers = [], BuffersBefore(self.program)
        with RandomStream(self.seed), module_mode(self.program, training=True), own_store():
            with pyro.validation_enabled(False):
                for _ in range(NUM_GRADIENTS):
                    self.loss(self.rows)
                    draws.append([p.grad.reshape(-1) for p in wanted if p.grad is not None])
        buffers.restore()
        for parameter in self.loss.parameters:
            parameter.grad = None
        if not draws[0]:
            return math.nan
        gradients = torch.stack([torch.cat(found) for found in draws])
        spread = gradients.std(0)
        ratio = gradients.mean(0).abs() / spread
        return float(ratio[spread > 0].mean())

    def collapse(self) -> Collapse | None:
        """Find the latent dimensions that ignore x; None for a program without local latents."""
        try:
            return collapsed_dimensions(self.program, *self.rows, seed=self.seed)
        except ConfigError:
            return None


def check_monitorable(program: nn.Module, batch: Batch) -> None:
    """Raise ConfigError if a program cannot be monitored, for example without a q(z|x)."""
    with pyro.poutine.block():  # SVI collects the parameters that it sees
        decompose_elbo(program, *batch.head(2), num_samples=1)

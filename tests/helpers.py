"""Helpers shared by test files: small VAEs, data for them, and comparisons of states."""

import contextlib
import hashlib
import random
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import guides, likelihoods, priors
from pyrovae.networks import Concat, Given, OneHot, mlp
from pyrovae.programs import (
    BayesianVAE,
    CategoricalHead,
    GivenGlobal,
    NotMissingAtRandomVAE,
    SelfMasking,
    SemiSupervisedVAE,
)
from pyrovae.runtime.run_folder import RunFolder

N = 37  # rows: a multiple of no batch size in the tests


def bits(n: int = N, *event: int, seed: int = 0) -> Tensor:
    """Return n random rows of zeros and ones, (n, *event), by default (37, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (n, *(event or (4,))), generator=generator).float()


def small_vae(event_shape: tuple[int, ...] = (4,), **settings) -> pv.VAE:
    """Return a built VAE with two latent dimensions and one hidden layer of 8 units."""
    return pv.build(event_shape, **{"latent_dim": 2, "hidden": (8,), "seed": 0} | settings)


def vae_of(
    prior: nn.Module | None = None,
    guide: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    *,
    latent_dim: int = 2,
    hidden: int = 5,
) -> pv.VAE:
    """Return the VAE of these heads: a standard normal in two dimensions, three binary columns."""
    prior = prior or priors.StandardNormal(latent_dim)
    guide = guide or guides.DiagonalNormal(latent_dim)
    likelihood = likelihood or likelihoods.Bernoulli(3)
    x_shape, z_shape = tuple(likelihood.event_shape), tuple(prior().event_shape)
    encoder = nn.Sequential(mlp(x_shape, guide.num_features, hidden=(hidden,)), guide)
    decoder = nn.Sequential(mlp(z_shape, likelihood.num_features, hidden=(hidden,)), likelihood)
    return pv.VAE(prior, encoder, decoder)


def with_dropout() -> pv.VAE:
    """Return a small VAE that draws dropout in its encoder."""
    vae = small_vae()
    vae.encoder[0].insert(1, nn.Dropout(0.5))
    return vae


def vamp_vae() -> nn.Module:
    """Return a small VAE whose VampPrior shares the encoder."""
    vae = small_vae()
    return pv.VAE(priors.VampPrior(vae.encoder, bits(5, seed=1)), vae.encoder, vae.decoder)


def conditional(width: int = 4) -> nn.Module:
    """Return a small VAE whose encoder and decoder see labels 0, 1, 2."""
    torch.manual_seed(0)
    q, p, of_y = guides.DiagonalNormal(2), likelihoods.Bernoulli(width), OneHot(3)
    encoder = nn.Sequential(mlp(width + 3, q.num_features, hidden=(8,)), q)
    decoder = nn.Sequential(mlp(2 + 3, p.num_features, hidden=(8,)), p)
    given = [Given(Concat(part, of_y=of_y)) for part in (encoder, decoder)]
    return pv.VAE(priors.StandardNormal(2), *given)


def semi_supervised(width: int = 4) -> nn.Module:
    """Return a semi-supervised VAE with three labels."""
    torch.manual_seed(0)
    conditioned, c = conditional(width), CategoricalHead(3)
    return SemiSupervisedVAE(
        conditioned.prior,
        conditioned.encoder,
        conditioned.decoder,
        nn.Sequential(mlp(width, c.num_features, hidden=(8,)), c),
        priors.Fixed(dist.Categorical, probs=torch.full((3,), 1 / 3)),
        alpha=2.0,
    )


class Stretched(nn.Module):
    """A decoder of z ⊙ exp(w)."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z, w):
        return self.part(z * w.exp())


def with_global_latents() -> nn.Module:
    """Return a small VAE whose decoder has two global latents."""
    vae = small_vae()
    decoder = GivenGlobal(Stretched(vae.decoder))
    w = priors.StandardNormal(2), priors.LearnedNormal(2)
    return BayesianVAE(vae.prior, vae.encoder, decoder, *w)


def not_at_random() -> nn.Module:
    """Return a small normal VAE whose large values go missing."""
    vae = small_vae(likelihood="Normal")
    missing = SelfMasking(4, sign=-1)
    return NotMissingAtRandomVAE(vae.prior, vae.encoder, vae.decoder, missing)


class Tied(nn.Module):
    """A decoder whose weights are those of the encoder, transposed."""

    def __init__(self, encoder):
        super().__init__()
        self.first = encoder[0][0]

    def forward(self, z):
        logits = torch.tanh(z) @ self.first.weight[:2] + self.first.bias[:4]
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


def tied() -> nn.Module:
    """Return a VAE whose decoder uses the weights of its encoder."""
    torch.manual_seed(0)
    q = guides.DiagonalNormal(2)
    encoder = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), q)
    return pv.VAE(priors.StandardNormal(2), encoder, Tied(encoder))


class Shifted(nn.Module):
    """A decoder with two shifts, whose gradients autograd returns as one tensor."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

    def forward(self, z):
        return self.part(z + (self.a + self.b))


def shifted() -> nn.Module:
    """Return a VAE with two parameters whose gradients share their memory."""
    vae = small_vae()
    return pv.VAE(vae.prior, vae.encoder, Shifted(vae.decoder))


def binary(n: int = 64, event: int = 3) -> Tensor:
    """Return rows of all zeros or all ones, (n, event): log 2 nats a row."""
    generator = torch.Generator().manual_seed(0)
    first = torch.bernoulli(torch.full((n, 1), 0.5), generator=generator)
    return first.expand(n, event).clone()


def unshrink(module: nn.Module) -> None:
    """Move flows away from their start near the identity, where a wrong Jacobian hides."""
    for part in module.modules():
        if hasattr(part, "hyper"):
            nn.init.normal_(part.hyper[-1].weight, std=0.5)
        for parameter in getattr(part, "phi", ()):
            nn.init.normal_(parameter, std=0.5)


def state_of(program: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by name."""
    return {name: tensor.clone() for name, tensor in program.state_dict().items()}


def is_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> bool:
    """Compare two states by name, bit for bit unless a tolerance is given."""
    assert a.keys() == b.keys()
    return all(torch.allclose(a[n], b[n], **tolerance or {"rtol": 0, "atol": 0}) for n in a)


def digest(state: object) -> str:
    """Return the SHA-256 of a module's state or of a nested one, every float bit for bit."""
    return hashlib.sha256(repr(_exact(state)).encode()).hexdigest()


def _exact(state):
    if isinstance(state, nn.Module):
        return _exact(state.state_dict())
    if isinstance(state, Tensor):
        raw = state.detach().contiguous().flatten().view(torch.uint8)
        return str(state.dtype), tuple(state.shape), raw.cpu().numpy().tobytes()
    if isinstance(state, dict):
        return [(key, _exact(value)) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return [_exact(value) for value in state]
    return state


def final_state(folder: Path) -> dict:
    """Return the last checkpoint of a run, without its clocks and the name of its engine."""
    with RunFolder(folder, resume=True) as run:
        state = run.newest_complete().state["loop"]
    history = state["history"]
    history["epochs"] = torch.cat([history["epochs"][:, :7], history["epochs"][:, 8:]], 1)
    return state | {"seconds": 0.0, "history": history | {"engine": ""}}


def generators() -> tuple:
    """Return the states of the global generators of torch, NumPy and Python."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    numpy_state = numpy_state[1].tobytes(), numpy_state[2:]
    return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()


@contextlib.contextmanager
def unchanged(*programs: nn.Module):
    """Assert that the global generators and the programs' states are the same after the block."""
    before = generators(), [digest(program) for program in programs]
    yield
    assert (generators(), [digest(program) for program in programs]) == before

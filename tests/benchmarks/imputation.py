"""Half of each digit hidden: does the VAE know the other half better than a linear model?

    python tests/benchmarks/imputation.py

log p(x_missing | x_observed) in nats per datum on held-out binarized digits. The VAE's is
log p(x) − log p(x_observed) [IWAE-2000]. The linear-Gaussian model (probabilistic PCA by maximum
likelihood, Tipping & Bishop 1999, same number of latents) gives the exact conditional mean,
taken as the Bernoulli probability after clipping to [0.02, 0.98].
"""

import math

import torch

import pyrovae as pv

LATENT_DIM = 10


def conditional_mean(x: torch.Tensor, x_test: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """E[x | x_observed] under probabilistic PCA fitted to x, (N, D)."""
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[:-LATENT_DIM].mean()
    weight = vectors[:, -LATENT_DIM:] * (values[-LATENT_DIM:] - noise).sqrt()
    rows = []
    for row, observed in zip(x_test, mask, strict=True):
        w = weight[observed]
        m = w.T @ w + noise * torch.eye(LATENT_DIM, dtype=x.dtype)
        rows.append(mean + weight @ torch.linalg.solve(m, w.T @ (row - mean)[observed]))
    return torch.stack(rows)


def main() -> None:
    data = pv.datasets.digits()
    x, x_test = (pv.datasets.binarize(part) for part in (data.train, data.test))
    vae = pv.build((8, 8), latent_dim=LATENT_DIM, hidden=(200, 200), data=x, seed=0)
    pv.fit(vae, x, validation=x_test[:100], epochs=200, batch_size=64, progress=False)
    x_test = x_test[100:]
    mask = torch.rand(x_test.shape, generator=torch.Generator().manual_seed(0)) < 0.5

    whole = pv.log_evidence(vae, x_test, method="iwae", num_samples=2000).log_px
    observed = pv.log_evidence(vae, x_test, mask=mask, method="iwae", num_samples=2000).log_px
    ours = whole - observed

    flat = [t.double().flatten(1) for t in (x, x_test)]
    p = conditional_mean(*flat, mask.flatten(1)).clamp(0.02, 0.98)
    linear = torch.distributions.Bernoulli(p).log_prob(flat[1]).mul(~mask.flatten(1)).sum(-1)

    gain = ours - linear
    error = gain.std().item() / math.sqrt(len(gain))
    ess = pv.impute(vae, x_test, mask=mask, num_samples=100).ess
    print(f"log p(x_missing | x_observed), {len(x_test)} held-out digits, half the pixels hidden")
    print(f"VAE {ours.mean():8.2f}   linear-Gaussian {linear.mean():8.2f}   nats per datum")
    print(f"gain {gain.mean():+.2f} ± {error:.2f}: {gain.mean() / error:.1f} standard errors")
    print(f"effective sample size of impute's 10,000 proposals: median {ess.median():.0f}")


if __name__ == "__main__":
    main()

# %% [markdown]
# # 3 · What is the regulariser for?
#
# The loss has two terms; put a weight on the second,
#
# $$ l_i(\beta) = -\mathbb{E}_{q(z|x_i)}\big[\log p(x_i|z)\big]
#   + \beta \; \mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big). $$
#
# At $\beta = 1$ it is the VAE, and $-l_i$ is a lower bound of the log evidence $\log p(x_i)$. At
# $\beta = 0$ only reconstruction counts. Since the KL makes reconstructions worse, why pay for it?
# In this notebook we leave it out and watch the encoder **cheat**: it gives each image a far-away
# place of its own, like a cloakroom ticket, and the decoder learns the list by heart.
# Reconstructions are excellent, and the space between the tickets means nothing.
#
# Averaged over the $N$ images, the KL is the sum of two parts (the *ELBO surgery* of Hoffman and
# Johnson, 2016), with $q(z) = \frac1N \sum_i q(z|x_i)$ the crowd of all clouds, the *aggregate
# posterior*:
#
# $$ \frac1N \sum_i \mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big)
#   = \underbrace{I_q}_{z \text{ tells the images apart, } \le \log N}
#   + \underbrace{\mathrm{KL}\big(q(z)\,\|\,p(z)\big)}_{\text{how far the crowd is from the prior}}. $$
#
# The first part is information, which reconstruction needs. The second is pure loss: codes in
# places where the prior never draws. Without a regulariser nothing keeps it small.
#
# Words from both sides: $p(z) = N(0, I)$ is the *prior*, $q(z|x)$ the *guide* or the encoder's
# cloud, the first term *reconstruction* or *distortion*, the KL *regulariser* or *rate*; all in
# nats.

# %%
import math
import os

import matplotlib.pyplot as plt
import torch

import pyrovae as pv

epochs, limit = (2, 200) if "PYROVAE_SMOKE" in os.environ else (100, None)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]
x_test, labels = pv.datasets.binarize(data.test), data.test_labels


def trained(beta: float, epochs: int) -> pv.VAE:
    """The same architecture, initial weights, data and seed; only β differs."""
    vae = pv.build(x_train.shape[1:], latent_dim=2, hidden=(100, 100), seed=0)
    objective = pv.objectives.BetaELBO(beta)
    pv.fit(vae, x_train, objective=objective, epochs=epochs, learning_rate=3e-3)
    return vae.requires_grad_(False)


without, with_kl = trained(0.0, epochs), trained(1.0, epochs)
models = {"β = 0": without, "β = 1": with_kl}
fig, axes = plt.subplots(2, 1, figsize=(9, 4.2))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    made = vae.reconstruct(x_test[:12], seed=0)
    pv.plots.reconstructions(x_test[:12], made, columns=12, ax=ax, title=name)
fig.tight_layout()

# %% [markdown]
# On reconstructions alone, $\beta = 0$ looks better. Now look at the codes.
#
# ## The encoder cheats

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 5))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    q = vae.encode(x_test)
    title = f"{name}: held-out codes, 95 % ellipses of some"
    pv.plots.latent_scatter(q.mean, labels, scales=q.stddev, ax=ax, title=title)
    ax.add_patch(plt.Circle((0, 0), 2.45, fill=False, linestyle="--"))  # 95 % of N(0, I)
    print(f"{name}: median width of a cloud, {q.stddev.median():.4f};", end=" ")
    print(f"root mean square of the centres, {q.mean.square().mean().sqrt():.2f}")
fig.tight_layout()

# %% [markdown]
# The dashed circle holds 95 % of the prior in both pictures; mind the scales of the axes. Without
# the regulariser the codes lie far outside, and each cloud has shrunk to nearly a point. To the
# decoder the places of two clouds that do not touch are unrelated: nothing asks it to be smooth
# between.
#
# ## Where two people's "2" land
#
# Two people write a 2. How far apart are the codes, measured in widths of the clouds? We take the
# pair of held-out 2s whose distance at $\beta = 0$ is the median of all pairs, a typical pair, and
# decode along the straight line between the two codes.

# %%
twos = x_test[labels == 2]
first, second = torch.triu_indices(len(twos), len(twos), 1)


def widths_apart(vae: pv.VAE) -> torch.Tensor:
    """Distance of the codes of each pair of 2s, in standard deviations of q(z|x)."""
    q = vae.encode(twos)
    return (q.mean[first] - q.mean[second]).norm(dim=-1) / q.stddev[first].mean(-1)


order = widths_apart(without).argsort()
typical = order[len(order) // 2]
pair = torch.stack([twos[first[typical]], twos[second[typical]]])
fig, axes = plt.subplots(2, 1, figsize=(9, 3.4))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    start, end = vae.encode(pair).mean
    between = torch.linspace(0, 1, 11)[:, None]
    made = vae.decode((1 - between) * start + between * end).mean
    row = torch.cat([pair[:1], made, pair[1:]])
    pv.plots.images(row, columns=13, ax=ax, title=f"{name}: a 2, the way between, another 2")
    print(f"{name}: two 2s are {widths_apart(vae).median():.1f} widths apart (median of all pairs)")
fig.tight_layout()

# %% [markdown]
# ## Samples from the prior
#
# Generating means $z \sim p(z)$, then decoding. The prior draws near the origin. At $\beta = 0$
# few images were ever coded there, so the decoder improvises.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4.4))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    torch.manual_seed(0)
    made = vae.decode(vae.prior().sample((36,))).mean
    pv.plots.images(made, columns=6, ax=ax, title=f"{name}: decoded from z ~ p(z)")
fig.tight_layout()

# %% [markdown]
# ## The account, in nats
#
# Held-out images. The evidence $\log p(x) = \log \mathbb{E}_{z \sim p(z)}[p(x|z)]$ asks: would
# this model, drawing from *its prior*, make this image? So we draw from the prior, many times, and
# average, on a random subset of the images. That is the number the cheat ruins.

# %%
chosen = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(0))[:50]
subset, num_draws = x_test[chosen], 50_000 if limit is None else 1_000


def mean_log_evidence(vae: pv.VAE) -> float:
    """Mean of log p(x) over the subset: the mean of p(x|z) over draws of the prior, in logs."""
    torch.manual_seed(0)
    z = vae.prior().sample((num_draws, 1))
    log_likelihood = torch.cat([vae.decode(part).log_prob(subset) for part in z.split(1000)])
    return (log_likelihood.logsumexp(0) - math.log(num_draws)).mean().item()


print(f"{'per datum':8} {'distortion':>12} {'rate':>8} = {'I_q':>6} + {'KL(q(z)|p)':>10}"
      f" {'ELBO':>9} {'log p(x)':>9}")  # fmt: skip
for name, vae in models.items():
    d = pv.diagnostics.decompose_elbo(vae, x_test)
    parts = d.mean_reconstruction, d.mean_kl, d.mutual_information, d.marginal_kl, d.mean_elbo
    numbers = [part.value for part in parts]
    print("{:9} {:12.2f} {:8.2f} = {:6.2f} + {:10.2f} {:9.2f}".format(name, *numbers), end=" ")
    print(f"{mean_log_evidence(vae):9.2f}")
print(f"log N = {math.log(len(x_test)):.2f}, the largest that I_q can be")
exact = pv.log_evidence(with_kl, subset, method="grid").log_px.mean()
print(f"β = 1, log p(x) by quadrature instead of draws: {exact:.2f}")

# %% [markdown]
# With $\beta = 0$ the information $I_q$ is nearly at its ceiling $\log N$: the code names the
# image. The rest of the rate is the distance of the crowd from the prior, which buys nothing.
#
# ## Everything between: the rate–distortion curve
#
# Each $\beta$ is a price: how many nats of distortion a nat of rate must save. Sweep it. The
# training is shorter here, for many models.

# %%
betas = (0.01, 0.1, 0.3, 1.0, 1.5, 3.0)
sweep = {beta: trained(beta, max(epochs // 2, 1)) for beta in betas}
found = {beta: pv.diagnostics.decompose_elbo(vae, x_test) for beta, vae in sweep.items()}
rates = [d.mean_kl for d in found.values()]
distortions = [d.mean_reconstruction for d in found.values()]
fig, ax = plt.subplots(figsize=(7, 5))
pv.plots.rate_distortion(rates, distortions, labels=[f"β = {beta}" for beta in betas], ax=ax)
ax.set_title("held-out digits, one model a point")
fig.tight_layout()
for beta, d in found.items():
    print(f"β = {beta:<5} ELBO {d.mean_elbo}   log p(x) {mean_log_evidence(sweep[beta]):8.2f}")

# %% [markdown]
# From left to right: at a high price the code says nothing and every image gets the average digit
# (*collapse*); as the price falls the code says more and the distortion falls, steeply at first,
# then hardly. Along a dashed line the ELBO is the same, and on the curve it is highest near $\beta
# = 1$, since at $\beta = 1$ the ELBO itself is what was maximised. The evidence may be highest at
# another $\beta$ below it: the ELBO also charges for what the guide cannot fit.
#
# So the regulariser is not there to make a picture tidy. It is the half of the model that says
# *which $z$ occur*, and without it $p(x) = \int p(x|z)\, p(z)\, dz$ is not modelled at all.
#
# ## What would make this wrong
#
# - **Judging by reconstructions.** They reward the cheat. So does any score that feeds $x$ in.
# - **Reading a β-VAE's loss as a bound.** For $\beta < 1$ it is none; compare models at different
#   $\beta$ by distortion and rate, the ELBO at $\beta = 1$ (what `fit` always records), or the
#   evidence.
# - **A likelihood with a scale.** For a normal $p(x|z)$, the fixed $\sigma^2$ is a $\beta$ in
#   disguise (tutorial 1, exercise); so is summing or averaging over pixels. "$\beta = 1$" means
#   something only with a likelihood that you believe.
# - **One seed, one architecture.** How far out the codes go at $\beta = 0$ grows with training
#   time and width, because nothing stops it. The direction of the effect is robust, its size is
#   not.
# - **$I_q$ near $\log N$** is an estimate at its ceiling: the true information is that or more.
#
# ## Exercise
#
# At $\beta = 0$ the codes are far from $N(0, I)$. So keep encoder and decoder, and move the
# *prior* to the codes: fit a mixture of 50 normals to $q(z)$ with `pv.refit_prior`. Is the model
# repaired? Predict first: which of the two parts of the rate can this remove, and which must stay?
#
# **Answer.** It can remove $\mathrm{KL}(q(z)\,\|\,p(z))$, nearly all of it: samples look like
# digits again, and the evidence rises by a lot. It cannot touch $I_q$, which does not contain the
# prior: the narrow clouds remain, and held-out images fall between the clouds that the training
# images left. A fitted prior after the fact is not worth the same as a regulariser that shaped the
# codes in training: compare with the row of $\beta = 1$ above.

# %%
mixture = pv.priors.GaussianMixture(2, num_components=50)
mixture.loc.data = without.encode(x_train[:50]).mean  # start where the codes are
options = {"epochs": max(epochs // 5, 1), "learning_rate": 0.02}
moved = pv.refit_prior(without, x_train, mixture, **options).vae.requires_grad_(False)
d = pv.diagnostics.decompose_elbo(moved, x_test)
print(f"β = 0, prior refitted: rate {d.mean_kl}, of which I_q {d.mutual_information}")
print(f"KL(q(z)|p) {d.marginal_kl};  log p(x) {mean_log_evidence(moved):.2f}")
torch.manual_seed(0)
made = moved.decode(moved.prior().sample((36,))).mean
fig, ax = plt.subplots(figsize=(5, 4.4))
pv.plots.images(made, columns=6, ax=ax, title="β = 0, from the refitted prior")
fig.tight_layout()

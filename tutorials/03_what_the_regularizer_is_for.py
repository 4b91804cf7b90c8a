# %% [markdown]
# # 3 · What is the regularizer for?
#
# The loss has two terms; put a weight on the second,
#
# $$ l_i(\beta) = -\mathbb{E}_{q(z|x_i)}\big[\log p(x_i|z)\big]
#   + \beta \; \mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big). $$
#
# At $\beta = 1$ it is the VAE, and $-l_i$ is a lower bound of the log evidence $\log p(x_i)$. At
# $\beta = 0$ only reconstruction counts. Since the KL makes reconstructions worse, why pay for it?
# In this notebook we leave it out, for a hundred images so that it takes seconds, and watch the
# encoder **cheat**: it gives each image a far-away place of its own, like a cloakroom ticket, and
# the decoder learns the list by heart. Reconstructions are excellent, and the space between the
# tickets means nothing.
#
# Averaged over the $N$ images, the KL is the sum of two parts (the *ELBO surgery* of Hoffman and
# Johnson, 2016), with $q(z) = \frac1N \sum_i q(z|x_i)$ the crowd of all clouds, the *aggregate
# posterior*:
#
# $$ \frac1N \sum_i \mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big)
#   = \underbrace{I_q}_{\text{tells images apart, } \le \log N}
#   + \underbrace{\mathrm{KL}\big(q(z)\,\|\,p(z)\big)}_{\text{crowd against prior}}. $$
#
# The first part is information, which reconstruction needs. The second is pure loss: codes in
# places where the prior never draws. Without a regularizer nothing keeps it small.
#
# Words from both sides: $p(z) = N(0, I)$ is the *prior*, $q(z|x)$ the *guide* or the encoder's
# cloud, the first term *reconstruction* or *distortion*, the KL *regularizer* or *rate*; all in
# nats.

# %%
import math
import os
import warnings

import matplotlib.pyplot as plt
import torch

import pyrovae as pv

steps, epochs, num_draws = (4, 1, 1_000) if "PYROVAE_SMOKE" in os.environ else (900, 50, 50_000)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train, x_test = pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
few, few_labels = x_train[:100], data.train_labels[:100]


def trained(x: torch.Tensor, beta: float, epochs: int) -> pv.VAE:
    """The same architecture, initial weights and seed; only the data and β differ."""
    vae = pv.build(x.shape[1:], latent_dim=2, hidden=(100, 100), seed=0)
    objective = pv.objectives.BetaELBO(beta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a code that falls silent, as it should for a large β
        pv.fit(vae, x, objective=objective, epochs=epochs, learning_rate=5e-3)
    return vae.requires_grad_(False)


models = {"β = 0": trained(few, 0.0, steps), "β = 1": trained(few, 1.0, steps)}
fig, axes = plt.subplots(2, 1, figsize=(9, 4.2))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    made = vae.reconstruct(few[:12], seed=0)
    pv.plots.reconstructions(few[:12], made, columns=12, ax=ax, title=name)
fig.tight_layout()

# %% [markdown]
# These are training images. On them $\beta = 0$ looks far better: nearly perfect. Now look at the
# codes.
#
# ## The encoder cheats

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    q = vae.encode(few)
    title = f"{name} (dashed circle: 95 % of p(z))"
    pv.plots.latent_scatter(q.mean, few_labels, scales=q.stddev, ax=ax, title=title)
    ax.add_patch(plt.Circle((0, 0), 2.45, fill=False, linestyle="--"))
    print(f"{name}: median width of a cloud, {q.stddev.median():.2g};", end=" ")
    print(f"root mean square of the centers, {q.mean.square().mean().sqrt():.2f}")
fig.tight_layout()

# %% [markdown]
# The dashed circle holds 95 % of the prior in both pictures; mind the scales of the axes. Without
# the regularizer the codes lie far outside, and each cloud has shrunk to nearly a point. To the
# decoder the places of two clouds that do not touch are unrelated: nothing asks it to be smooth
# between.
#
# ## Where two people's "2" land
#
# Two people write a 2. How far apart are the codes, measured in widths of the clouds? We take the
# pair of training 2s whose distance at $\beta = 0$ is the median of all pairs, a typical pair, and
# decode along the straight line between the two codes.

# %%
twos = few[few_labels == 2]
first, second = torch.triu_indices(len(twos), len(twos), 1)


def widths_apart(vae: pv.VAE) -> torch.Tensor:
    """Distance of the codes of each pair of 2s, in standard deviations of q(z|x)."""
    q = vae.encode(twos)
    return (q.mean[first] - q.mean[second]).norm(dim=-1) / q.stddev[first].mean(-1)


order = widths_apart(models["β = 0"]).argsort()
typical = order[len(order) // 2]
pair = torch.stack([twos[first[typical]], twos[second[typical]]])
fig, axes = plt.subplots(2, 1, figsize=(9, 3.4))
for ax, (name, vae) in zip(axes, models.items(), strict=True):
    start, end = vae.encode(pair).mean
    between = torch.linspace(0, 1, 11)[:, None]
    made = vae.decode((1 - between) * start + between * end).mean
    row = torch.cat([pair[:1], made, pair[1:]])
    pv.plots.images(row, columns=13, ax=ax, title=f"{name}: a 2, the way between, another 2")
    print(f"{name}: 2s are {widths_apart(vae).median():,.0f} widths apart (median of all pairs)")
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
# The rate and its parts are those of the training images. The evidence of *held-out* images,
# $\log p(x) = \log \mathbb{E}_{z \sim p(z)}[p(x|z)]$, asks: would this model, drawing from its
# prior, make this image? So we draw from the prior, many times, and average. That is the number
# the cheat ruins.

# %%
chosen = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(0))[:50]
subset = x_test[chosen]


def mean_log_evidence(vae: pv.VAE, x: torch.Tensor = subset) -> float:
    """Mean of log p(x): the mean of p(x|z) over draws of the prior, in logs."""
    torch.manual_seed(0)
    z = vae.prior().sample((num_draws, 1))
    log_likelihood = torch.cat([vae.decode(part).log_prob(x) for part in z.split(1000)])
    return (log_likelihood.logsumexp(0) - math.log(num_draws)).mean().item()


print(f"{'per datum':8} {'distortion':>12} {'rate':>8} = {'I_q':>6} + {'KL(q(z)|p)':>10}"
      f" {'ELBO':>9} {'log p(x)':>9}")  # fmt: skip
for name, vae in models.items():
    d = pv.diagnostics.decompose_elbo(vae, few)
    parts = d.mean_reconstruction, d.mean_kl, d.mutual_information, d.marginal_kl, d.mean_elbo
    numbers = [part.value for part in parts]
    print("{:9} {:12.2f} {:8.2f} = {:6.2f} + {:10.2f} {:9.2f}".format(name, *numbers), end=" ")
    print(f"{mean_log_evidence(vae):9.2f}")
print(f"log N = {math.log(len(few)):.2f}, the largest that I_q can be")
exact = pv.log_evidence(models["β = 1"], subset[:10], method="grid").log_px.mean()
print(f"β = 1, log p(x) of the first ten by quadrature {exact:.2f}, by draws", end=" ")
print(f"{mean_log_evidence(models['β = 1'], subset[:10]):.2f}")

# %% [markdown]
# With so few images both codes nearly name the image: $I_q$ is close to its ceiling $\log N$ for
# either. What differs is the second part. At $\beta = 0$ the rate is almost all distance of the
# crowd from the prior, which buys a few nats of distortion and costs the evidence far more. (Both
# evidences are poor beside those further down, which have all the training images.)
#
# ## Everything between: the rate–distortion curve
#
# Each $\beta$ is a price: how many nats of distortion a nat of rate must save. Sweep it, now with
# all training images, and look at held-out ones.

# %%
betas = (0.02, 0.2, 0.6, 1.0, 1.5, 3.0)
sweep = {beta: trained(x_train, beta, epochs) for beta in betas}
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
# then hardly. Along a dashed line the ELBO is the same, and on the curve it is highest near
# $\beta = 1$, since at $\beta = 1$ the ELBO itself is what was maximized. The evidence may be
# highest at another $\beta$ below it: the ELBO also charges for what the guide cannot fit.
#
# So the regularizer is not there to make a picture tidy. It is the half of the model that says
# *which $z$ occur*, and without it $p(x) = \int p(x|z)\, p(z)\, dz$ is not modeled at all.
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
# - **Averaging over too few draws.** If no draw of the prior comes near a good $z$, the average of
#   $p(x|z)$ falls short of $p(x)$, as it may at $\beta = 0$. The check by quadrature covers
#   $\beta = 1$ only.
# - **$I_q$ near $\log N$** is an estimate at its ceiling: the true information is that or more.
#
# ## Exercise
#
# At $\beta = 0$ the codes are far from $N(0, I)$. So keep encoder and decoder, and move the
# *prior* to the codes: fit a mixture of 50 normals to $q(z)$ with `pv.refit_prior`. Is the model
# repaired? Predict first: which of the two parts of the rate can this remove, and which must stay?
#
# **Answer.** It can remove $\mathrm{KL}(q(z)\,\|\,p(z))$, most of it here: samples look like
# digits again, and the held-out evidence rises by a lot. It cannot touch $I_q$, which does not
# contain the prior and stays at its ceiling, nor what training left behind: a decoder that knows a
# hundred places and nothing between them, so the samples are those hundred digits again and the
# held-out evidence stays far below that of $\beta = 1$ in the account above. A regularizer shapes
# encoder and decoder while they learn; a prior fitted afterwards only draws a map of the damage.

# %%
tickets = models["β = 0"]
mixture = pv.priors.GaussianMixture(2, num_components=50)
mixture.loc.data = tickets.encode(few[:50]).mean  # start where the codes are
moved = pv.refit_prior(tickets, few, mixture, epochs=max(steps // 10, 1), learning_rate=0.02).vae
moved.requires_grad_(False)
d = pv.diagnostics.decompose_elbo(moved, few)
print(f"β = 0, prior refitted: rate {d.mean_kl}")
print(f"  of which I_q         {d.mutual_information}")
print(f"  and KL(q(z)|p)       {d.marginal_kl}")
print(f"held-out log p(x)      {mean_log_evidence(moved):.2f}")
torch.manual_seed(0)
made = moved.decode(moved.prior().sample((36,))).mean
fig, ax = plt.subplots(figsize=(5, 4.4))
pv.plots.images(made, columns=6, ax=ax, title="β = 0, from the refitted prior")
fig.tight_layout()

# %% [markdown]
# # 5 · Reading the ELBO: what does one number hide?
#
# The ELBO is one number per datum, in nats, higher is better. Two models with the same ELBO can be
# as different as a model that codes its data well and one that ignores its code. This notebook
# takes the number apart, from inside and from above:
#
# $$ \mathrm{ELBO} = -\underbrace{\mathbb{E}_q[-\log p(x|z)]}_{\text{distortion } D}
#   - \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)}_{\text{rate } R},
#   \qquad \frac1N \sum_i R_i = \underbrace{I_q}_{\text{information}}
#   + \underbrace{\mathrm{KL}\big(q(z)\,\|\,p(z)\big)}_{\text{misfit of the prior}}, $$
#
# $$ \mathrm{ELBO} \;\le\; \mathbb{E}\Big[\log \frac1K \sum_{k=1}^K
#   \frac{p(x, z_k)}{q(z_k|x)}\Big] \;\le\; \log p(x) = \mathrm{ELBO}
#   + \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big), $$
#
# with $q(z) = \frac1N \sum_i q(z|x_i)$, and $z_k \sim q(z|x)$.
#
# | word | reading for networks | reading for probability |
# |---|---|---|
# | distortion $D$ | reconstruction error | $-$ expected log-likelihood |
# | rate $R$ | regularizer | KL from guide to prior: nats that the code may tell |
# | $I_q$ | how well codes tell the data apart | mutual information of $x$ and $z$, under $q$ |
# | $\mathrm{KL}(q(z) \,\Vert\, p(z))$ | codes lie where no sample is drawn | misfit of the prior |
# | $\log p(x)$ | (none) | log evidence |
#
# [Tutorials 1](01_what_is_a_vae_neural_net.ipynb) and
# [2](02_what_is_a_vae_probability_model.ipynb) have the definitions;
# [3](03_what_the_regularizer_is_for.ipynb) has the pictures of rate and distortion.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import torch

import pyrovae as pv

smoke = "PYROVAE_SMOKE" in os.environ
epochs, limit, some, temperatures = (1, 100, 5, 5) if smoke else (60, None, 50, 400)
draws = (1, 10, 100) if smoke else (1, 10, 100, 1_000, 10_000)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]
x_test, labels = pv.datasets.binarize(data.test)[:limit], data.test_labels[:limit]
common = {"event_shape": x_train.shape[1:], "latent_dim": 10, "seed": 0}
warm_up = pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.4))
vae = pv.build(**common, hidden=(100, 100))
with warnings.catch_warnings(record=True):  # of collapse, below
    warnings.simplefilter("always")
    pv.fit(vae, x_train, objective=warm_up, epochs=epochs, learning_rate=3e-3)
vae.requires_grad_(False)
print(f"10 latent dimensions, {len(x_train):,} training images, {len(x_test)} held out")

# %% [markdown]
# ## Three log-densities, per draw and per datum
#
# Everything below is a function of three arrays with one entry for each draw $s$ and datum $i$. The
# ELBO is the mean over draws of $\log p(x_i|z_s) + \log p(z_s) - \log q(z_s|x_i)$: average over
# draws first, look at the data one by one, average over data last.

# %%
terms = pv.elbo_terms(vae, x_test, num_samples=100)
log_weights = terms.log_likelihood + terms.log_prior - terms.log_guide  # (100, N)
elbo = log_weights.mean(0)  # (N,)
torch.testing.assert_close(terms.log_weights, log_weights)
for name in ("log_likelihood", "log_prior", "log_guide"):
    print(f"{name:15} {getattr(terms, name).mean():8.2f} nats, mean over draws and data")
print(f"ELBO            {elbo.mean():8.2f} ± {elbo.std() / len(elbo) ** 0.5:.2f} (over data)")
print(f"  spread over draws, for one datum {log_weights.std(0).mean():.2f}")
print(f"  spread over data                 {elbo.std():.2f}")
order = elbo.argsort(descending=True)
ends = torch.cat([order[:10], order[-10:]])
fig, ax = plt.subplots(figsize=(9, 2.2))
title = f"ELBO above {elbo[order[9]]:.1f} nats (top row), below {elbo[order[-10]]:.1f} (bottom)"
pv.plots.images(x_test[ends], columns=10, ax=ax, title=title)
fig.tight_layout()

# %% [markdown]
# The spread over data is large, because some digits are common and simple and others are not. So
# **compare two models datum by datum**: the paired difference has a much smaller error than either
# mean.
#
# ## The account
#
# `decompose_elbo` gives all parts of the first line of equations with standard errors. Beside it we
# put a model without a code, each pixel an independent coin with its own frequency: rate 0, and a
# distortion that says what the code is worth.

# %%
d = pv.diagnostics.decompose_elbo(vae, x_test, num_samples=20)
frequency = ((x_train.sum(0) + 0.5) / (len(x_train) + 1)).clamp(0.001, 0.999)
coins = torch.distributions.Bernoulli(frequency).log_prob(x_test).sum((1, 2)).mean()
for name, value in {
    "distortion D": d.mean_reconstruction,
    "rate R": d.mean_kl,
    "  information I_q": d.mutual_information,
    "  misfit of the prior": d.marginal_kl,
    "ELBO = −D − R": d.mean_elbo,
}.items():
    print(f"{name:24} {value} nats")
saved = -coins - d.mean_reconstruction.value
print(f"without a code: D = {-coins:.2f}, R = 0; so {d.mean_kl.value:.2f} nats of code", end=" ")
print(f"save {saved:.2f} nats of pixels")
print(f"I_q cannot exceed log N = {torch.tensor(len(x_test)).log():.2f}")

# %% [markdown]
# Read it from the top: the decoder, knowing the code, still needs $D$ nats for the pixels; the code
# takes $R$ nats; a sender who used both would need $D + R = -\mathrm{ELBO}$ nats an image. Of $R$,
# the first part is information about the image. The second is what a better prior could save with
# the networks as they are ([tutorial 4](04_swapping_the_prior.ipynb)).
#
# ## Which dimensions work?
#
# For a normal guide and prior the rate is a sum over latent dimensions. A dimension is *active*
# when the mean of $q(z_d|x)$ moves with $x$: $\mathrm{Var}_x(\mathbb{E}[z_d|x]) > 0.01$ (Burda et
# al., 2016).

# %%
active = pv.diagnostics.active_units(vae, x_test)
fig, ax = plt.subplots(figsize=(8, 3.4))
pv.plots.kl_by_dimension(d, active, ax=ax)
fig.tight_layout()
print(f"{active.num_active} of {len(active.names)} active; their variances of the means:")
print("  ".join(f"{v:.3f}" for v in active.variance.sort(descending=True).values))
print(pv.diagnostics.collapsed_dimensions(vae, x_test).message)

# %% [markdown]
# An inactive dimension costs nothing and says nothing: there $q(z_d|x)$ is the prior for every $x$.
# That may be right (the data need no more) or an accident of training. The ELBO alone does not say
# which. So try cures, and judge them by the evidence.
#
# ## Collapse, and its cures
#
# A network of four hidden layers, each way trained on the same data from the same seed. Early in
# training the decoder cannot use the code yet, so the rate is pure cost and the encoder learns to
# keep quiet. **Warm-up** makes the rate free at first; **free bits** makes the first nats of each
# dimension free throughout; a **residual** network is easier to train, and so a cure of the cause.
# `fit` warns of collapse at its end.

# %%
deep = {"hidden": (100, 100, 100, 100)}
recipes = {
    "plain": (deep, None),
    "warm-up": (deep, pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.4))),
    "free bits": (deep, pv.objectives.FreeBits(0.5)),
    "residual": (deep | {"network": "residual_mlp"}, None),
}
models, parts, evidence = {}, {}, {}
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    for name, (network, objective) in recipes.items():
        models[name] = pv.build(**common, **network)
        options = {"objective": objective, "epochs": epochs, "learning_rate": 3e-3}
        history = pv.fit(models[name], x_train, **options)
        models[name].requires_grad_(False)
        parts[name] = pv.diagnostics.decompose_elbo(models[name], x_test, num_samples=20)
        evidence[name] = pv.log_evidence(models[name], x_test, method="auto").log_px
        if name == "plain":
            print("fit says:", history.collapse.message, "\n")
print("            ELBO      D      R    I_q   collapsed   log p(x)")
for name, d in parts.items():
    numbers = (d.mean_elbo, d.mean_reconstruction, d.mean_kl, d.mutual_information)
    collapsed = pv.diagnostics.collapsed_dimensions(models[name], x_test).collapsed
    print(f"{name:9}", *(f"{e.value:6.2f}" for e in numbers), f"{len(collapsed):9}", end=" ")
    print(f"{evidence[name].mean():13.2f}")

# %% [markdown]
# Judge a cure by the last column. A recipe can wake every dimension and win little, and warm-up is
# no guarantee. Where two recipes tie in the ELBO but not in the evidence, the difference is what
# the *guide* loses, by the second line of equations. The next cell pairs the models datum by datum,
# to see which differences are more than noise. Look also at the bars: under free bits each
# dimension takes about what is free, 0.5 nats, whether it has that much to say or not.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
rates, distortions = (
    [getattr(p, n) for p in parts.values()] for n in ("mean_kl", "mean_reconstruction")
)
pv.plots.rate_distortion(rates, distortions, labels=list(parts), ax=axes[0])
title = "free bits: KL by latent dimension"
pv.plots.kl_by_dimension(parts["free bits"], title=title, ax=axes[1])
fig.tight_layout()
for better, worse in (("free bits", "plain"), ("residual", "plain")):
    print(f"{better} − {worse}, paired:", end=" ")
    for name, gain in {
        "ELBO": parts[better].elbo - parts[worse].elbo,
        "log p(x)": evidence[better] - evidence[worse],
    }.items():
        print(f"{name} {gain.mean():6.2f} ± {gain.std() / len(gain) ** 0.5:.2f}", end="   ")
    print()

# %% [markdown]
# ## From above: the evidence
#
# The ELBO is too low by $\mathrm{KL}(q(z|x)\,\|\,p(z|x))$, and by how much depends on the model.
# With $K$ draws, the log of the *mean weight* is a tighter bound; it rises with $K$ to $\log p(x)$,
# and $K = 1$ is the ELBO. *Annealed* importance sampling (AIS) goes from the prior to the posterior
# in many small steps, so it does not need a good guide. The two methods fail for different
# reasons.

# %%
x = x_test[:some]
by_draws = {}
for k in draws:
    by_draws[k] = pv.log_evidence(vae, x, method="iwae", num_samples=k).log_px
annealed = pv.log_evidence(vae, x, method="ais", num_temperatures=temperatures)
fig, ax = plt.subplots(figsize=(7, 3.8))
ax.plot(list(by_draws), [b.mean() for b in by_draws.values()], "o-", label="K draws of the guide")
ax.axhline(annealed.log_px.mean(), color="black", linestyle="--", label="annealing")
ax.set(xscale="log", xlabel="K, draws per datum", ylabel="mean log p(x), nats (higher is better)")
ax.legend()
fig.tight_layout()
for k, bound in by_draws.items():
    short = annealed.log_px - bound
    print(f"K = {k:6,}: annealing is higher by {short.mean():6.3f} nats, at most {short.max():.2f}")

# %% [markdown]
# ## A sandwich
#
# All of these are lower bounds, and lower bounds can agree and be low together. An *upper* bound
# needs an exact draw of the posterior. On data that the model itself made we have one: the $z^*$
# that the datum came from. Annealing backwards from it gives a bound from above (*bidirectional
# Monte Carlo*, Grosse et al., 2015):
#
# $$ \text{annealing forward} \;\le\; \log p(x) \;\le\; \text{annealing backward}. $$
#
# Each holds in expectation, so noise may make them cross. Where the difference is within its error
# of zero they have met: annealing with these settings is right, and can judge the other bounds.

# %%
sandwich = pv.evidence.bdmc(vae, some, num_temperatures=temperatures)
inside = pv.log_evidence(vae, sandwich.x, method="iwae").log_px
one = pv.elbo_terms(vae, sandwich.x, num_samples=100).log_weights.mean(0)
print(f"ELBO                 {one.mean():8.3f} nats, on {some} data that the model made")
print(f"1,000 draws of guide {inside.mean():8.3f}")
print(f"annealing, forward   {sandwich.lower.mean():8.3f}   ≤ log p(x)")
print(f"annealing, backward  {sandwich.upper.mean():8.3f}   ≥ log p(x)")
print(f"upper − lower: {sandwich.gap:.3f} ± {sandwich.gap_std_error:.3f}")

# %% [markdown]
# ## What would make this wrong
#
# - **Ranking models by the ELBO.** See the table of cures: what the guide loses differs from model
#   to model. Rank by the evidence, paired by datum.
# - **Comparing numbers of different data.** $\log p(x)$ of pixels that are 0 or 1 is a probability;
#   of real numbers it is a density, and changes with their unit. Binarize another way, and it is
#   another data set.
# - **More active dimensions as a goal.** Free bits makes all dimensions active by paying for it.
#   Whether that helped is for the evidence to say.
# - **The threshold 0.01** supposes a prior of unit scale. `collapsed_dimensions` asks for the KL as
#   well.
# - **$I_q$ at its ceiling $\log N$.** An estimate near it says "that or more".
# - **A sandwich of simulated data.** It vouches for annealing on data that the model finds likely.
#   For real data it is a guide only; then look whether annealing and importance sampling agree, and
#   at $\hat k$ ([tutorial 6](06_can_i_believe_the_encoder.ipynb)).
# - **One seed.** Each recipe was run once.
#
# ## Exercise
#
# When is collapse *right*? Take data from $x \sim N(0, C)$ with known eigenvalues of $C$, a linear
# decoder and a normal likelihood of fixed $\sigma^2 = 1$. Then the best possible model is known in
# closed form (probabilistic PCA; Tipping and Bishop, 1999), and so is its posterior: a normal, with
# a mean linear in $x$, so that a linear encoder with a diagonal normal guide can be exact. With
# eigenvalues 6, 3, 1.5, 0.7, 0.4, 0.2 and six latent dimensions: how many will be active? What ELBO
# will be reached, and how far below $\log p(x)$?
#
# **Answer.** A latent dimension pays where it explains variance beyond the noise: those with
# $\lambda_j > \sigma^2$ (Lucas et al., 2019). Three here; the other three collapse at the *best*
# model, and no cure should wake them. The model's covariance then has eigenvalues
# $\max(\lambda_j, \sigma^2)$, so the mean evidence is
#
# $$ \mathbb{E}[\log p(x)] = -\tfrac12 \sum_j \Big( \log 2\pi + \log m_j + \lambda_j / m_j \Big),
#   \qquad m_j = \max(\lambda_j, \sigma^2), $$
#
# and the ELBO reaches it, since the guide can be the posterior.

# %%
eigenvalues = torch.tensor([6.0, 3.0, 1.5, 0.7, 0.4, 0.2])
rows = torch.randn(200 if smoke else 4000, 6, generator=torch.Generator().manual_seed(0))
rows = torch.linalg.qr(rows - rows.mean(0)).Q * len(rows) ** 0.5 * eigenvalues.sqrt()  # exactly so
rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
linear = pv.build((6,), latent_dim=6, likelihood="Normal", hidden=(), seed=0)
schedule = {"epochs": epochs, "learning_rate": lambda done: 0.01 * (1 - done)}
with warnings.catch_warnings(record=True):  # of collapse: it is right here
    warnings.simplefilter("always")
    pv.fit(linear, rows @ rotation, **schedule)
linear.requires_grad_(False)
m = eigenvalues.clamp(min=1.0)
best = -0.5 * ((2 * torch.pi * m).log() + eigenvalues / m).sum()
d = pv.diagnostics.decompose_elbo(linear, rows @ rotation, num_samples=100)
active = pv.diagnostics.active_units(linear, rows @ rotation)
print(f"active {active.num_active} of 6, predicted {int((eigenvalues > 1).sum())}")
print(f"ELBO {d.mean_elbo.value:.3f}, best possible log p(x) {best:.3f} nats")

# %% [markdown]
# # 6 · Can I believe the encoder?
#
# A trained encoder answers "where is $z$, given this $x$?" in one pass: $q(z|x)$. It was trained
# to be near the posterior $p(z|x) = p(x|z)\, p(z) / p(x)$, and nothing guarantees that it is. How
# far off is it, on which data, and why?
#
# | question | quantity | answer by |
# |---|---|---|
# | on which data? | $\hat k$ of the weights $w_s = p(x, z_s) / q(z_s \mid x)$ | `pareto_k` |
# | how many nats? | $\mathrm{KL}\big(q(z \mid x) \,\Vert\, p(z \mid x)\big)$ | `inference_gaps` |
# | family or network? | the same, split in two | `inference_gaps` |
# | too narrow, or off? | ranks of true $z$ among draws of $q$ | `calibration` |
# | what is the posterior then? | draws of $p(z \mid x)$ | `posterior.hmc`, `sir`, `refine` |
#
# The nats first. For any density $q$ of the guide's family, and $q^*$ the best of the family for
# this datum alone,
#
# $$ \log p(x) - \mathrm{ELBO}(q) = \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)
#   = \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation: the family}}
#   + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortisation: the network}}. $$
#
# We use two latent dimensions, where the posterior is exact on a grid ([tutorial
# 2](02_what_is_a_vae_probability_model.ipynb)): every diagnostic below can be checked against the
# truth once, before it is used where no grid can go.
#
# **From deep learning:** the encoder is a fast, approximate solver; here are the tests of a solver.
# **From statistics:** this is the model checking of *computation*, not of the model. A decoder that
# is wrong about the data passes all of it.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyrovae as pv

smoke = "PYROVAE_SMOKE" in os.environ
epochs, limit, some, chains = (2, 200, 12, 60) if smoke else (80, None, 200, 500)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]
x_test, labels = pv.datasets.binarize(data.test)[:some], data.test_labels[:some]
common = {"latent_dim": 2, "hidden": (100, 100), "seed": 0}
vae = pv.build(x_train.shape[1:], **common)
pv.fit(vae, x_train, epochs=epochs, learning_rate=3e-3)
vae.requires_grad_(False)
print(f"guide: {vae.encoder[-1]}; {len(x_test)} held-out digits are asked about")

# %% [markdown]
# ## On which data? The weights tell
#
# Draw $z_s \sim q(z|x)$ and weigh each draw by $w_s = p(x, z_s) / q(z_s|x)$. If $q$ were the
# posterior, all weights of a datum would be equal, to $p(x)$. If $q$ misses a region that matters,
# a rare draw from there gets a huge weight. $\hat k$ is the shape of the tail of the weights
# (Vehtari et al., 2024): below about 0.7 averages over them can be trusted, above not, however
# many draws there are. It needs only the model and the guide, not the truth.

# %%
terms = pv.elbo_terms(vae, x_test, num_samples=1000)
weights = terms.log_weights.softmax(0)  # of each datum, summing to one
reliability = pv.diagnostics.pareto_k(vae, x_test)
order = reliability.pareto_k.argsort()
print("row   k̂      largest weight of 1,000   effective draws")
for i in order[[0, len(order) // 2, -1]].tolist():
    k, ess = reliability.pareto_k[i], reliability.ess[i]
    print(f"{i:3}  {k:5.2f}  {weights[:, i].max():20.1%} {ess:17.0f}")
print(reliability.message)
fig, ax = plt.subplots(figsize=(8, 3.4))
pv.plots.pareto_k(reliability, ax=ax)
fig.tight_layout()

# %% [markdown]
# ## How many nats, and whose fault?
#
# `inference_gaps` refines the guide of each datum by itself, starting from the encoder's answer.
# What that gains is the network's fault; what is left is the family's: here the family of normal
# densities without correlation.

# %%
gaps = pv.diagnostics.inference_gaps(vae, x_test, method="grid", num_samples=400)
fig, ax = plt.subplots(figsize=(8, 3))
pv.plots.gaps(gaps, ax=ax)
fig.tight_layout()
print(gaps.advice)

# %% [markdown]
# A gap in nats has a plain meaning. It is the KL from the guide to the posterior, so it is the
# number of nats by which the ELBO of that datum is too low; and where it is large, samples and
# means of $q(z|x)$ are not those of $p(z|x)$.
#
# ## Too narrow, or off? Ranks of the truth
#
# *Simulation-based calibration* (Talts et al., 2018): draw $z^* \sim p(z)$ and $x \sim p(x|z^*)$.
# Then $z^*$ is an exact draw of the posterior of that $x$. So if the guide is the posterior, $z^*$
# ranks anywhere among draws of $q(z|x)$ with equal probability. If the guide is too narrow, $z^*$
# falls outside its draws too often; and a region that claims to hold $z^*$ in 90 % of the cases
# holds it in fewer.

# %%
calibration = pv.diagnostics.calibration(vae, 100 if smoke else 2000)
fig, axes = plt.subplots(1, 2, figsize=(11, 4))
pv.plots.calibration(calibration, ax=axes[0])
pv.plots.coverage(calibration, ax=axes[1])
fig.tight_layout()
print(calibration.message)

# %% [markdown]
# Left, the share of truths below each level of the guide's draws, less what it should be; a line
# that leaves the band is no chance. Right, what regions of the guide claim and what they hold. No
# encoder passes this with enough simulations, since no encoder is exactly the posterior; look at
# the *size* of the departure. An S on the left and points under the diagonal on the right are the
# usual finding: minimising $\mathrm{KL}(q\,\|\,p)$ punishes mass where the posterior has none, and
# so makes narrow guides.
#
# ## HMC beside the guide, beside the truth
#
# Hamiltonian Monte Carlo draws from $p(z|x)$ and needs only $\log p(x, z)$ and its gradient. Four
# chains a datum start at draws of the guide. $\hat R$ compares the chains with each other: above
# 1.01 they do not agree yet. Three data: the lowest $\hat k$, the middle one, the highest.

# %%
axis = torch.linspace(-5, 5, 301)
lattice = torch.cartesian_prod(axis, axis)


def on_lattice(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x, z) and log q(z|x) at each lattice point, (N, 301, 301) each."""
    log_joint = vae.decode(lattice[:, None]).log_prob(x_test[rows])
    log_joint += vae.prior().log_prob(lattice)[:, None]
    log_guide = vae.encode(x_test[rows]).log_prob(lattice[:, None])
    return tuple(t.T.reshape(len(rows), len(axis), -1) for t in (log_joint, log_guide))


def draw_three(rows: torch.Tensor, hmc: pv.posterior.Posterior) -> None:
    """Truth shaded, guide outlined, draws of HMC as points."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    for i, (row, exact, guide) in enumerate(zip(rows, *on_lattice(rows), strict=True)):
        points = hmc.draws[:, ::10, i].flatten(0, 1)
        title = f"row {row}, a {labels[row]}: k̂ = {reliability.pareto_k[row]:.2f}"
        options = {"log_guide": guide, "draws": points, "title": title, "ax": axes[i]}
        pv.plots.grid_posterior(exact, (axis, axis), **options)
        if i:
            axes[i].get_legend().remove()  # the same key as in the first
    fig.tight_layout()


shown = order[[0, len(order) // 2, -1]]
hmc = pv.posterior.hmc(vae, x_test[shown], num_samples=chains)
draw_three(shown, hmc)
print("R̂             ", *(f"{r:6.3f}" for r in hmc.r_hat))
print("effective draws", *(f"{e:6.0f}" for e in hmc.ess), f"  of {4 * chains}")

# %% [markdown]
# ## What to do for the data that failed
#
# Three ways, each dearer than the one before: weigh and resample the guide's own draws
# (`posterior.sir`), refine the guide for each datum (`posterior.refine`), run chains
# (`posterior.hmc`). `pv.diagnostics.escalate(vae, x, rows=…, method=…)` is the same for chosen rows.
# Judge each by the posterior mean and standard deviation, against the exact ones of
# `posterior.grid`.

# %%
failed = reliability.failed[:20]
hard = x_test[failed]
exact = pv.posterior.grid(vae, hard, num_samples=4000)
exact_sd = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
guide, best = vae.encode(hard), pv.posterior.refine(vae, hard).guide
found = {"guide": (guide.mean, guide.stddev), "refine": (best.mean, best.stddev)}
for name, draws in {
    "sir": pv.posterior.sir(vae, hard, num_samples=chains),
    "hmc": pv.posterior.hmc(vae, hard, num_samples=chains),
}.items():
    found[name] = draws.mean, draws.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
print(f"{len(failed)} data with the highest k̂; errors in posterior standard deviations")
print("           mean off by (median, worst)    its width / true width (median)")
for name in ("guide", "sir", "refine", "hmc"):
    mean, sd = found[name]
    off = ((mean - exact.mean) / exact_sd).abs().flatten()
    print(f"{name:8} {off.median():14.2f} {off.max():8.2f} {(sd / exact_sd).median():24.2f}")

# %% [markdown]
# ## ArviZ, in full
#
# `pv.to_arviz` puts draws, predictives, data and log-densities under the names that
# [ArviZ](https://python.arviz.org) expects, with dimensions `chain`, `draw`, `datum`, `latent`, so
# all that it offers works: summaries, traces, $\hat R$, saving to one file with everything in it.
# (An `InferenceData` under ArviZ 0.x, an xarray `DataTree` from 1.0 on; the groups are the same.)
# `sel(datum=0)` picks a datum; each has its own posterior and its own chains.

# %%
export = pv.to_arviz(
    vae, x_test[shown], labels=labels[shown], posterior="hmc", num_samples=chains, seed=0
)
sizes = dict(export["posterior"]["z"].sizes)
for group in ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"):
    print(f"{group:22}", ", ".join(f"{n} {v.dims}" for n, v in export[group].data_vars.items()))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ warns of its own next version
    import arviz as az

    print(az.summary(export, var_names=["z"], coords={"datum": [0, 1, 2]}, round_to=2).to_string())

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
#   + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization: the network}}. $$
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
import torch

import pyrovae as pv

plt.rcParams["figure.dpi"] = 75
smoke = "PYROVAE_SMOKE" in os.environ
epochs, limit, some = (2, 200, 8) if smoke else (80, None, 120)
chains = {"num_samples": 20, "num_warmup": 10} if smoke else {"num_samples": 500}

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
# (Vehtari et al., 2024): below about 0.7 averages over them can be trusted, above not. It needs
# only the model and the guide, not the truth. The effective number of draws, $(\sum w)^2 / \sum
# w^2$, counts what was seen; $\hat k$ asks what the tail promises beyond, so a datum can have many
# effective draws and a high $\hat k$.

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
fig, ax = plt.subplots(figsize=(8, 3.4))
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
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
pv.plots.calibration(calibration, ax=axes[0])
pv.plots.coverage(calibration, ax=axes[1])
fig.tight_layout()
print(calibration.message)

# %% [markdown]
# Left, the share of truths below each level of the guide's draws, less what it should be; a line
# that leaves the gray band is no chance. An S means too narrow or too wide, an arch to one side
# that the guide sits on the other side of the truth. Right, what regions of the guide claim and
# what they hold: below the diagonal the guide is too sure of itself, for either reason. No encoder
# passes this with enough simulations, since none is exactly the posterior; look at the *size* of
# the departure, and whether it agrees with the gaps. An encoder that misses $q^*$ puts its region
# beside the posterior; a family that is too narrow makes the region too small.
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
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.8))
    for i, (row, exact, guide) in enumerate(zip(rows, *on_lattice(rows), strict=True)):
        points = hmc.draws[:, ::20, i].flatten(0, 1)
        title = f"row {row}, a {labels[row]}: k̂ = {reliability.pareto_k[row]:.2f}"
        options = {"log_guide": guide, "draws": points, "title": title, "ax": axes[i]}
        pv.plots.grid_posterior(exact, (axis, axis), **options)
    key = axes[0].get_legend()
    names = [text.get_text() for text in key.get_texts()]
    fig.legend(key.legend_handles, names, loc="lower center", ncols=5, frameon=False)
    for ax in axes:
        ax.get_legend().remove()
    fig.tight_layout(rect=(0, 0.07, 1, 1))


shown = order[[0, len(order) // 2, -1]]
hmc = pv.posterior.hmc(vae, x_test[shown], **chains)
draw_three(shown, hmc)
print("R̂             ", *(f"{r:6.3f}" for r in hmc.r_hat))
print("effective draws", *(f"{e:6.0f}" for e in hmc.ess), f"  of {hmc.draws[..., 0, 0].numel():,}")

# %% [markdown]
# ## What to do for the data that failed
#
# Three ways, each dearer than the one before: weigh and resample the guide's own draws
# (`posterior.sir`), refine the guide for each datum (`posterior.refine`), run chains
# (`posterior.hmc`). `pv.diagnostics.escalate(vae, x, rows=…, method=…)` does it for chosen rows.
# Judge each by the posterior mean and standard deviation, against the exact ones of
# `posterior.grid`.

# %%
hard = x_test[order[-20:]]
exact = pv.posterior.grid(vae, hard, num_samples=4000)
exact_sd = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
guide, best = vae.encode(hard), pv.posterior.refine(vae, hard).guide
found = {"guide": (guide.mean, guide.stddev), "refine": (best.mean, best.stddev)}
hmc_hard = pv.posterior.hmc(vae, hard, **chains)
for name, draws in {
    "sir": pv.posterior.sir(vae, hard, num_samples=2000),
    "hmc": hmc_hard,
}.items():
    found[name] = draws.mean, draws.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
print(f"{len(hard)} data with the highest k̂; errors in posterior standard deviations")
print("           mean off by (median, worst)    its width / true width (median)")
for name in ("guide", "sir", "refine", "hmc"):
    mean, sd = found[name]
    off = ((mean - exact.mean) / exact_sd).abs().flatten()
    print(f"{name:8} {off.median():14.2f} {off.max():8.2f} {(sd / exact_sd).median():24.2f}")
off = ((found["hmc"][0] - exact.mean) / exact_sd).abs().amax(-1)
print("hmc, datum by datum: row   mean off by       R̂")
for i in off.argsort(descending=True)[:3]:
    print(f"{order[-20:][i]:24} {off[i]:13.2f} {hmc_hard.r_hat[i]:8.3f}")

# %% [markdown]
# HMC has the smallest median error and the right widths, and yet its worst mean is farther off than
# that of `sir`. It is one digit, whose posterior has two modes: each chain stays for long in one of
# them, so the mean weighs the modes by where the chains were, not by their probability. Here
# $\hat R$ far above 1.01 says so, because the chains are in different modes. Had all four started
# in the same one, nothing would.
#
# ## ArviZ, in full
#
# `pv.to_arviz` puts draws, predictives, data and log-densities under the names that
# [ArviZ](https://python.arviz.org) expects, with dimensions `chain`, `draw`, `datum`, `latent`, so
# all that it offers works: summaries, traces, $\hat R$, saving to one file with everything in it.
# (An `InferenceData` under ArviZ 0.x, an xarray `DataTree` from 1.0 on; the groups are the same.)
# `sel(datum=0)` picks a datum; each has its own posterior and its own chains.

# %%
export = pv.to_arviz(vae, x_test[shown], labels=labels[shown], posterior="hmc", **chains)
for group in ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"):
    print(f"{group:22}", ", ".join(f"{n} {v.dims}" for n, v in export[group].data_vars.items()))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ warns of its own next version
    import arviz as az

    print(az.summary(export, var_names=["z"], coords={"datum": [0, 1, 2]}, round_to=2).to_string())

# %% [markdown]
# The rows are `z[datum, latent]`. `ess_bulk` is how many independent draws the chains are worth,
# `r_hat` whether they agree, `mcse_mean` the Monte-Carlo error of the mean. And since all groups
# are plain xarray, any other picture is a line or two: for the datum with the highest $\hat k$, the
# chains, the marginal beside prior and guide, and the ink of replicated images.

# %%
of_guide = pv.to_arviz(vae, x_test[shown], num_samples=1000, predictive=False)
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
z = export["posterior"]["z"].sel(datum=2, latent=1)
axes[0].plot(z.values[:, :80].T, linewidth=0.8)
axes[0].set(xlabel="draw", ylabel="latent dimension 1", title="four chains")
options = {"bins": 40, "range": (-3, 3), "density": True, "histtype": "step"}
for name, group in (("prior", export), ("posterior", export), ("guide", of_guide)):
    draws = group["posterior" if name == "guide" else name]["z"].sel(datum=2, latent=1)
    axes[1].hist(draws.values.ravel(), label=name, **options)
axes[1].set(xlabel="latent dimension 1", title="marginal densities")
axes[1].legend(frameon=False)
ink = export["posterior_predictive"]["x"].sel(datum=2).sum(("x_dim_0", "x_dim_1"))
seen = int(export["observed_data"]["x"].sel(datum=2).sum())
axes[2].hist(ink.values.ravel(), bins=range(int(ink.min()), int(ink.max()) + 2), label="replicated")
axes[2].axvline(seen, color="black", label="observed")
axes[2].set(xlabel="pixels with ink", title="posterior predictive")
axes[2].legend(frameon=False)
fig.tight_layout()
above = (ink.values >= seen).mean()
print(f"{above:.0%} of the replicated images have as much ink as the observed one, or more")

# %% [markdown]
# ## What would make this wrong
#
# - **Low $\hat k$ taken as proof.** It sees the tail of the weights that were *drawn*. A mode of
#   the posterior where the guide never draws leaves no trace in it. HMC that starts at the guide
#   may miss it as well. The next cell looks for such digits on the grid.
# - **Calibration on average.** SBC covers data *of the model*, averaged over the prior. It says
#   nothing about one datum, nor about real data that the model finds unlikely.
# - **$\hat R$ of a guide's draws.** They are independent, so it is 1 whatever they are draws of.
# - **`az.loo` of $\log p(x_i|z_i)$.** Each $z_i$ was inferred from $x_i$, so leaving out a datum
#   leaves nothing to predict it with. Compare models by `pv.log_evidence`.
# - **Refinement that stopped short** calls approximation what is amortization. Their sum stands.
# - **More dimensions.** The grid is gone; the other lines of the first table remain. Change
#   `latent_dim` above, and leave out the cells that use the grid (`method="refined"` for the gaps).

# %%
log_px = pv.log_evidence(vae, x_test, method="grid").log_px
missed = log_px - pv.log_evidence(vae, x_test).log_px  # nats that 1,000 weighted draws miss
looks_fine = reliability.is_reliable.nonzero()[:, 0]
worst = looks_fine[missed[looks_fine].argsort(descending=True)[:3]]
chains_there = pv.posterior.hmc(vae, x_test[worst], **chains)
draw_three(worst, chains_there)
for i, row in enumerate(worst):
    print(
        f"row {row}: k̂ = {reliability.pareto_k[row]:.2f}, R̂ = {chains_there.r_hat[i]:.3f}; ", end=""
    )
    print(f"log p(x) by weights is {missed[row]:.2f} nats too low")

# %% [markdown]
# ## Exercise
#
# Keep the model, that is prior and decoder, and train a new guide. Then $\log p(x)$ stays as it is,
# and each nat of ELBO that is gained is a nat of the gap closed. Three candidates: (a) a guide with
# correlations, `FullNormal`; (b) the same family and network, but shown fresh data drawn from the
# model beside the training images; (c) both. Predict from `inference_gaps` above which one helps.
#
# **Answer.** The amortization gap is the larger by far, so correlations alone can gain next to
# nothing: what the network has learned must be learned better. It saw the same training images in
# each epoch. The model can make as many new ones as one likes, and to show it those is practice
# for images that it has not seen (the *sleep* phase of Hinton et al., 1995). What gap is left can
# be closed datum by datum, with `posterior.refine`.

# %%
fresh = torch.cat([x_train.repeat(3, 1, 1), vae.sample(300 if smoke else 10_000, seed=1)])
before = gaps.elbo.mean()
print(f"ELBO of the held-out digits {before:.2f}, at most {gaps.log_px.mean():.2f} (evidence)")
for name, guide, shown_to_it, rounds in (
    ("(a) FullNormal", "FullNormal", x_train, epochs),
    ("(b) fresh data", "DiagonalNormal", fresh, max(epochs // 5, 1)),
    ("(c) both", "FullNormal", fresh, max(epochs // 5, 1)),
):
    encoder = pv.build(x_train.shape[1:], **common, guide=guide).encoder
    again = pv.VAE(vae.prior, encoder, vae.decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the decoder cannot be trained, which is the point
        pv.fit(again, shown_to_it, epochs=rounds, learning_rate=3e-3)
    gain = pv.elbo_terms(again, x_test, num_samples=100).log_weights.mean(0) - gaps.elbo
    print(f"{name:15} gains {gain.mean():5.2f} ± {gain.std() / len(gain) ** 0.5:.2f} nats")

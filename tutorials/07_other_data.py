# %% [markdown]
# # 7 · Other data: what changes when x is not a binary image?
#
# One factor of the model. The prior and the networks know nothing of what $x$ is; the likelihood
# $p(x|z)$ does, and so it is what you choose by looking at the data:
#
# | data | likelihood | log-density per number, with decoder features $l$ |
# |---|---|---|
# | zeros and ones | `Bernoulli` | $x\,l - \log(1 + e^l)$ |
# | counts | `Poisson`, `NegativeBinomial` | mean $s \cdot \mathrm{softplus}(l)$, $s$ known |
# | levels, 0 … K − 1 | `Categorical` | $l_x - \log \sum_k e^{l_k}$ |
# | ordered levels | `DiscretizedLogistic` | $\log$ of a logistic density's mass around $x$ |
# | real, in [0, 1] | `ContinuousBernoulli` | $x\,l + \log\big(l / (e^l - 1)\big)$ |
# | real | `Normal`, `StudentT` | the usual ones |
#
# What is **not observed** needs no new likelihood. With $x = (x_o, x_m)$, observed and missing, and
# with labels $y$ of which few are known,
#
# $$ p(x_o) = \int p(x_o|z)\, p(z)\, dz, \qquad
#   p(x_m|x_o) = \int p(x_m|z)\, p(z|x_o)\, dz, \qquad
#   p(x) = \sum_y p(y) \int p(x|z, y)\, p(z)\, dz: $$
#
# leave the factor out, predict it, or sum it out. These are the product rule and the sum rule of
# probability. Only the classifier of the last section gets a term by hand, and we say so there.
#
# **From deep learning:** a likelihood is the choice of the output layer and its loss, made
# together, so that the loss is the log of a density. **From statistics:** this is the response
# family of a regression of $x$ on $z$.

# %%
import os

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.networks import Concat, Given, OneHot, mlp

smoke = "PYROVAE_SMOKE" in os.environ
epochs, limit, draws = (1, 200, 100) if smoke else (30, None, 300)

# %% [markdown]
# ## Counts: cells with a known truth
#
# In single-cell data $x_{ij}$ counts the molecules of gene $j$ caught in cell $i$. Two things set
# them apart from other whole numbers. Cells are caught to very different **depths** $s_i$, which is
# no biology; and they vary **more than a Poisson** would, by a gene's own concentration $r_j$:
#
# $$ x_{ij} \sim \mathrm{NegativeBinomial}(\text{mean } \mu_{ij} = s_i\, \rho_j(z_i),\;
#   \text{variance } \mu_{ij} + \mu_{ij}^2 / r_j). $$
#
# We **simulate** such counts, to know the truth: two latent dimensions, 60 genes, very
# different depths. Real ones are one line away: `pv.datasets.pbmc3k()` has blood cells, and
# `pv.data.anndata(adata)` reads an AnnData.

# %%
generator = torch.Generator().manual_seed(1)
num_cells, num_genes = (200 if smoke else 1500), 60
true_z = torch.randn(num_cells, 2, generator=generator)
loadings = 0.8 * torch.randn(2, num_genes, generator=generator)
baseline = 1 + torch.randn(num_genes, generator=generator)
true_rate = (baseline + true_z @ loadings).clamp(max=5).exp()  # ρ_j(z_i): at depth 1
true_size = (0.8 * torch.randn(num_cells, generator=generator)).exp()
concentration = 0.5 + 3 * torch.rand(num_genes, generator=generator)  # r_j

torch.manual_seed(2)
mean = true_size[:, None] * true_rate
counts = torch.poisson(mean * dist.Gamma(concentration, concentration).sample([num_cells]))
size = counts.sum(1) / counts.sum(1).mean()  # what one has in place of s_i: the total, relative
train, test = slice(0, num_cells * 3 // 4), slice(num_cells * 3 // 4, None)
print(f"{num_cells} cells, {num_genes} genes, {(counts == 0).double().mean():.0%} zeros,", end=" ")
print(f"largest count {counts.max():.0f}, totals from {counts.sum(1).min():.0f}", end=" ")
print(f"to {counts.sum(1).max():.0f}")

# %% [markdown]
# The size is a *covariate*: known for each cell, part of the condition, not modeled.
# `CountDecoder` multiplies the mean by it, and `Given` says that a part takes a covariate, the `y`
# of every call. Raw counts span orders of magnitude, so the encoder sees their logarithm; that
# changes the guide, not the model. Three models: the right one, one with the wrong variance, one
# without sizes.


# %%
class LogCounts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log1p()


def cell_model(likelihood: nn.Module, *, sees_size: bool = True) -> pv.VAE:
    torch.manual_seed(0)
    q = pv.guides.DiagonalNormal(2)
    encoder = nn.Sequential(LogCounts(), mlp(num_genes, q.num_features, hidden=(64,)), q)
    network = mlp(2, likelihood.num_features, hidden=(64,))
    decoder = nn.Sequential(network, likelihood)
    if sees_size:
        decoder = Given(pv.likelihoods.CountDecoder(network, likelihood))
    return pv.VAE(pv.priors.StandardNormal(2), encoder, decoder)


cells = {
    "negative binomial": cell_model(pv.likelihoods.NegativeBinomial(num_genes)),
    "Poisson": cell_model(pv.likelihoods.Poisson(num_genes)),
    "NB without sizes": cell_model(pv.likelihoods.NegativeBinomial(num_genes), sees_size=False),
}
for vae in cells.values():
    sizes = size[train] if vae.sees_covariates else None
    pv.fit(vae, counts[train], sizes, epochs=epochs, batch_size=64, learning_rate=1e-2)
    vae.requires_grad_(False)

found = pv.diagnostics.compare_priors(cells, counts[test], size[test], num_samples=draws)
print("held-out log p(x), nats per cell, and how far below the best:")
for row in found.rows:
    print(f"  {row.name:20} {row.log_px}   {row.difference}")

truth = torch.cat([true_z, true_size.log()[:, None]], 1)[test]
for name, vae in cells.items():
    code = vae.encode(counts[test], size[test] if vae.sees_covariates else None).mean
    design = torch.cat([code, code**2, code.prod(1, keepdim=True), torch.ones(len(code), 1)], 1)
    left = truth - design @ torch.linalg.lstsq(design, truth).solution
    r2 = 1 - left.var(0) / truth.var(0)
    print(f"  {name:20} the code explains {r2[:2].mean():.0%} of true z, {r2[2]:.0%} of log depth")

# %% [markdown]
# The Poisson model pays in nats for variance that it cannot express, and the model without sizes
# spends its bottleneck on the depth: the second number of each line is how much of a *nuisance* can
# be read off the code. Both are wrong in a way that a loss curve does not show. What shows them is
# to draw data from the model and to look: left, variance against mean over the genes; middle, the
# concentrations that were learned; right, the codes, colored by depth, of the model without sizes.

# %%
torch.manual_seed(3)
fig, axes = plt.subplots(1, 3, figsize=(13, 4))
observed = counts[test]
axes[0].loglog(observed.mean(0), observed.var(0), "k.", label="held-out cells")
for name, mark in (("negative binomial", "C0+"), ("Poisson", "C1x")):
    vae = cells[name]
    code = vae.encode(observed, size[test]).sample()
    redrawn = vae.decode(code, size[test]).sample()
    axes[0].loglog(redrawn.mean(0), redrawn.var(0), mark, label=f"redrawn, {name}", ms=5)
axes[0].set(xlabel="mean of a gene, counts", ylabel="variance, counts²")
axes[0].legend()
learned = cells["negative binomial"].decoder.part.head.concentration
axes[1].plot(concentration, learned, ".")
axes[1].plot([0.5, 3.5], [0.5, 3.5], "k-", lw=0.8)
axes[1].set(xlabel="true concentration $r_j$", ylabel="learned")
code = cells["NB without sizes"].encode(observed).mean
shown = axes[2].scatter(*code.T, c=true_size[test].log(), s=8, cmap="viridis")
fig.colorbar(shown, ax=axes[2], label="log of the true depth")
axes[2].set(xlabel="latent dimension 0", ylabel="latent dimension 1", title="NB without sizes")
fig.tight_layout()

# %% [markdown]
# The learned concentrations follow the true ones and lie below them: whatever the networks and the
# noisy sizes miss is extra variance, and it is booked as dispersion. A parameter of the likelihood
# is a summary of what the rest of the model leaves, not a measurement.
#
# ## Gray images: three likelihoods, two units
#
# A pixel of the digits is a level 0 … 16. `Categorical` gives each level a probability of its own,
# `DiscretizedLogistic` two numbers a pixel from which all 17 follow. Both are probabilities **of
# levels**, so they can be compared, as bits per pixel. `ContinuousBernoulli` is a density on
# [0, 1]: nats per unit of $x$, so its number stands on another scale (and a density at data on a
# few levels can rise without meaning). The old habit of putting gray values into the binary
# cross-entropy is none of these: it is not the log of any density of gray values, and so it has no
# ELBO.

# %%
data = pv.datasets.digits()  # 8×8 pixels, levels 0 … 16, divided by 16
gray, gray_test = data.train[:limit], data.test[:limit]
level, level_test = (gray * 16).round().long(), (gray_test * 16).round().long()
common = {"latent_dim": 4, "hidden": (128,), "seed": 0}
logistic = {"name": "DiscretizedLogistic", "num_levels": 17}
kinds = {
    "Categorical": ({"name": "Categorical", "num_categories": 17}, level, level_test),
    "DiscretizedLogistic": (logistic, gray, gray_test),
    "ContinuousBernoulli": ("ContinuousBernoulli", gray, gray_test),
}
fig, axes = plt.subplots(1, 4, figsize=(13, 3.6))
pv.plots.images(gray_test[:16], columns=4, ax=axes[0], title="held-out digits")
for ax, (name, (likelihood, x, x_test)) in zip(axes[1:], kinds.items(), strict=True):
    vae = pv.build(x.shape[1:], likelihood=likelihood, **common)
    pv.fit(vae, x, epochs=2 * epochs, learning_rate=2e-3)
    log_px = pv.log_evidence(vae, x_test, num_samples=draws // 3).log_px
    bits = -log_px.mean() / (64 * torch.tensor(2.0).log())
    of = "levels: compare" if name != "ContinuousBernoulli" else "a density: do not compare"
    print(f"{name:20} {log_px.mean():8.2f} nats, {bits:6.3f} bits per pixel, of {of}")
    top = 16 if name == "Categorical" else 1
    pv.plots.images(vae.sample(16, seed=1) / top, columns=4, ax=ax, title=f"drawn: {name}")
fig.tight_layout()

# %% [markdown]
# ## Missing pixels
#
# Each pixel of the training digits is hidden with probability ½, whatever is in it (*missing
# completely at random*). `mask` is true where $x$ is observed. The likelihood then has the observed
# factors only, so what is maximized is a bound of $\log p(x_o)$; missing cells may hold anything,
# NaN too. The tempting alternative, to fill in zeros and train on that, is a model of
# another data set.

# %%
binary, binary_test = pv.datasets.binarize(gray), pv.datasets.binarize(gray_test)
torch.manual_seed(4)
seen, seen_test = torch.rand(binary.shape) < 0.5, torch.rand(binary_test.shape) < 0.5
holes = binary.masked_fill(~seen, torch.nan)  # no hidden value can leak

masked = pv.build(binary.shape[1:], **common)
pv.fit(masked, holes, mask=seen, epochs=2 * epochs, learning_rate=2e-3)
zeros = pv.build(binary.shape[1:], **common)
pv.fit(zeros, binary * seen, epochs=2 * epochs, learning_rate=2e-3)


def hidden_score(probability: torch.Tensor, mask: torch.Tensor = seen_test) -> float:
    """Mean log-probability of the pixels that were hidden, nats; 0 is perfect."""
    score = dist.Bernoulli(probability.clamp(1e-3, 1 - 1e-3)).log_prob(binary_test)
    return score[~mask].mean().item()


budget = {"num_samples": draws // 10, "num_proposals": 2 * draws}
imputed = pv.impute(masked, binary_test, mask=seen_test, **budget)
wrong = pv.impute(zeros, binary_test, mask=seen_test, **budget)
column = holes.nanmean(0).nan_to_num().expand_as(binary_test)
print("log-probability of a hidden held-out pixel, nats:")
for name, mean in {
    "p(x_m | x_o), trained with mask=": imputed.mean,
    "the same, trained on zeros": wrong.mean,
    "the pixel's own mean": column,
}.items():
    print(f"  {name:34} {hidden_score(mean):7.3f}")
share = (imputed.pareto_k > 0.7).double().mean()
print(f"images whose importance weights cannot be trusted (k̂ > 0.7): {share:.1%}")

fig, axes = plt.subplots(4, 1, figsize=(9, 4.6))
grid = {"columns": 12}
pv.plots.images(binary_test[:12], ax=axes[0], title="held-out digits", **grid)
masked_view = torch.where(seen_test, binary_test, 0.4)[:12]
pv.plots.images(masked_view, ax=axes[1], title="seen (gray: hidden)", **grid)
pv.plots.images(imputed.draws[0, :12], ax=axes[2], title="one draw of what was hidden", **grid)
pv.plots.images(imputed.mean[:12], ax=axes[3], title="its mean over draws", **grid)
for ax in axes:
    ax.set_xlabel("")
fig.tight_layout()

# %% [markdown]
# A draw is one completion that agrees with what was seen, with the coin flips of its pixels; the
# mean averages over completions, and is the better answer pixel by pixel. If the model is right,
# its probabilities are calibrated: among hidden pixels that get probability 0.3, three in ten are
# ink. Is that so?

# %%
fig, ax = plt.subplots(figsize=(4.6, 4))
for name, result in (("trained with mask=", imputed), ("trained on zeros", wrong)):
    p, is_ink = result.mean[~seen_test], binary_test[~seen_test]
    bins = (p * 10).long().clamp(max=9)
    middle = torch.stack([p[bins == b].mean() for b in range(10)])
    share = torch.stack([is_ink[bins == b].mean() for b in range(10)])
    ax.plot(middle, share, "o-", label=name)
    is_full = ~middle.isnan()
    off = (middle - share)[is_full].abs().max()
    print(f"{name:20} says {p.mean():.3f} ink, there is {is_ink.mean():.3f};", end=" ")
    print(f"largest miss of a bin {off:.2f}")
ax.plot([0, 1], [0, 1], "k-", lw=0.8)
ax.set(xlabel="predicted probability of ink", ylabel="share that is ink", title="hidden pixels")
ax.legend()
fig.tight_layout()

# %% [markdown]
# ## Labels for few
#
# Ten labeled digits of each class, the others without. $y$ is a second latent variable, discrete,
# known in a few rows: $p(x, y, z) = p(x|z, y)\, p(y)\, p(z)$. Where it is unknown it is summed out
# exactly, weighted by a classifier $q(y|x)$ that is trained by the same bound and, where the label
# is known, by an added term $\alpha \log q(y|x)$, which is no part of the bound:
#
# $$ \mathrm{ELBO}(x) = \sum_y q(y|x)\, \big(\mathrm{ELBO}(x, y) - \log q(y|x)\big). $$
#
# `programs.SemiSupervisedVAE` is that model, from the same parts; Pyro's `TraceEnum_ELBO` does the
# sum. $z$ is kept narrow, so that $y$ has something left to say. The yardstick is the same
# classifier trained on the hundred labels alone.

# %%
torch.manual_seed(5)
labels, labels_test = data.train_labels[:limit], data.test_labels[:limit]
known = torch.cat([(labels == k).nonzero()[: 2 if smoke else 10, 0] for k in range(10)])
y = torch.full_like(labels, -1)  # −1: not known
y[known] = labels[known]


def classifier() -> nn.Module:
    head = pv.programs.CategoricalHead(10)
    return nn.Sequential(nn.Flatten(), mlp(64, head.num_features, hidden=(128,)), head)


q, p = pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli((8, 8))
encoder = nn.Sequential(mlp(64 + 10, q.num_features, hidden=(128,)), q)
decoder = nn.Sequential(mlp(2 + 10, p.num_features, hidden=(128,)), p)
m2 = pv.programs.SemiSupervisedVAE(
    pv.priors.StandardNormal(2),
    Given(Concat(encoder, of_x=nn.Flatten(-2), of_y=OneHot(10))),
    Given(Concat(decoder, of_y=OneHot(10))),
    classifier(),
    pv.priors.Fixed(dist.Categorical, probs=torch.full((10,), 0.1)),
    alpha=len(y) / len(known),  # so that the known labels are not drowned by the other images
)
objective = TraceEnum_ELBO(max_plate_nesting=1)
pv.fit(m2, binary, y, objective=objective, epochs=2 * epochs, learning_rate=5e-3)

alone = classifier()
optimizer = torch.optim.Adam(alone.parameters(), lr=3e-3)
for _ in range(10 * epochs):  # all hundred at once
    optimizer.zero_grad()
    (-alone(binary[known]).log_prob(labels[known]).mean()).backward()
    optimizer.step()

right = (m2.classify(binary_test).argmax(1) == labels_test).double()
right_alone = (alone(binary_test).logits.argmax(1) == labels_test).double()
gain = pv.diagnostics.estimate.mean_of(right - right_alone)
print(f"held-out digits classified rightly, {len(known)} labels known of {len(y)}:")
print(f"  with the others' images {right.mean():.1%}, without {right_alone.mean():.1%};", end=" ")
print(f"difference {gain.value:.3f} ± {gain.std_error:.3f}")

torch.manual_seed(6)
with torch.no_grad():
    style = m2.encoder(binary_test[:8], labels_test[:8]).mean  # q(z|x, y): what is left is style
    made = torch.stack([m2.decoder(style, torch.full((8,), k)).mean for k in range(10)], 1)
table = torch.cat([binary_test[:8, None], made], 1).flatten(0, 1)
fig, ax = plt.subplots(figsize=(7, 5.2))
pv.plots.images(table, columns=11, ax=ax, title="left: a digit; right: its style as 0 … 9")
fig.tight_layout()

# %% [markdown]
# ## What would make this wrong
#
# - **A likelihood chosen for convenience.** The ELBO of a wrong likelihood rises as happily as
#   that of a right one. Draw from the model and compare what matters: variances, zeros, tails
#   (`diagnostics.posterior_check`, `feature_check`).
# - **Comparing densities with probabilities**, or densities of $x$ in different units: a change of
#   units by $c$ moves $\log p(x)$ by $\log c$ per number.
# - **A size that knows the answer.** The observed total is a stand-in for depth. Where cell types
#   differ in how much they express, dividing by the total removes biology too. And for new data,
#   `sample` needs sizes: the model has no opinion about them.
# - **Values that are missing for a reason.** `mask` ignores *why* a value is missing. That is
#   right when hiding does not depend on the hidden value, given what was seen (Rubin 1976);
#   otherwise no amount of data repairs it: the exercise.
# - **Importance weights that fail.** `impute` draws $z$ by resampling from the guide; `pareto_k`
#   and `ess` say where that guide was too poor. Training on masked data makes it good at it.
# - **Simulated counts.** The truth was in the family of the model here. Real cells are not.
# - **A hundred labels.** Which hundred matters, and so does the seed: repeat with others before
#   you believe a difference of a few per cent. The weight `alpha` was chosen by looking at these
#   test digits (the paper takes a tenth of it), so the difference is flattered.
#
# ## Exercise
#
# Hide pixels of the *test and training* digits for a reason: ink is hidden with probability 0.7,
# paper with 0.3. Train with `mask=` as before. How much ink does the model expect among hidden
# pixels, and how much is there?
#
# **Answer.** Too little. What is seen is mostly paper, and the mask says nothing more: the model
# learns the share of ink among *seen* pixels. Nothing within the data shows the error, since no
# hidden value is ever compared; here we know the truth. The cure is to model the mask as well,
# $p(m|x)$, which takes knowledge from outside. (If the two probabilities are known, a hidden pixel
# adds $\log\big(0.7\,p + 0.3\,(1 - p)\big)$ to the log-likelihood, $p$ its probability of ink given
# $z$, where `mask` adds nothing.)

# %%
torch.manual_seed(7)
seen_mnar, seen_mnar_test = (
    torch.rand(x.shape) < torch.where(x > 0.5, 0.3, 0.7) for x in (binary, binary_test)
)
biased = pv.build(binary.shape[1:], **common)
pv.fit(biased, binary.masked_fill(~seen_mnar, torch.nan), mask=seen_mnar, epochs=2 * epochs)
result = pv.impute(biased, binary_test, mask=seen_mnar_test, **budget)
expected, there = result.mean[~seen_mnar_test].mean(), binary_test[~seen_mnar_test].mean()
print(f"hidden for a reason: the model expects {expected:.3f} ink, there is {there:.3f}")
expected, there = imputed.mean[~seen_test].mean(), binary_test[~seen_test].mean()
print(f"hidden by chance:    the model expects {expected:.3f} ink, there is {there:.3f}")

# %% [markdown]
# # 2 · What is a VAE? The probability-model perspective
#
# *A VAE is a latent-variable model with a learned likelihood, fitted by maximum marginal
# likelihood, and a fast approximation of its posterior that is learned beside it.*
#
# The model of one datum $x$ with its latent variable $z$ is a joint density of two factors,
#
# $$ p(x, z) = p(x|z)\, p(z), $$
#
# and everything that can be asked about $z$ afterwards is Bayes' rule,
#
# $$ p(z|x) = \frac{p(x|z)\, p(z)}{p(x)}, \qquad p(x) = \int p(x|z)\, p(z)\, dz. $$
#
# | symbol | name | in the VAE |
# |---|---|---|
# | $p(z)$ | **prior**: of $z$, before seeing $x$ | `vae.prior()` |
# | $p(x \mid z)$ | **likelihood** | `vae.decode(z)` |
# | $p(z \mid x)$ | **posterior**: of $z$, after seeing $x$ | no formula; exact on a grid, below |
# | $p(x)$ | **evidence**, or marginal likelihood | `pv.log_evidence(vae, x)` |
# | $q(z \mid x)$ | **guide**: stands in for the posterior | `vae.encode(x)` |
#
# The evidence is often mislabeled "the prior of $x$". It is no prior: it is what the whole model,
# prior and likelihood together, predicts for the datum, and it is the denominator that makes the
# posterior integrate to one. In two latent dimensions it is a sum over a lattice, so nothing in
# this notebook needs to be believed.
#
# **If you come from deep learning:** a *density* gives each value a number, larger where values
# are more common; we use logarithms, in nats, so products become sums. `p(z)` below is an object
# that can draw values and give their log-density. [Tutorial 1](01_what_is_a_vae_neural_net.ipynb)
# has the same model as a network with a loss. **If you come from statistics:** `vae.decode` is a
# nonlinear regression of $x$ on $z$, with coefficients (weights) that are optimized, not
# integrated out.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

import pyrovae as pv

epochs, limit = (2, 200) if "PYROVAE_SMOKE" in os.environ else (80, None)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]  # each pixel is 0 or 1
x_test, labels = pv.datasets.binarize(data.test), data.test_labels
vae = pv.build(x_train.shape[1:], latent_dim=2, hidden=(100, 100), seed=0)
history = pv.fit(vae, x_train, epochs=epochs, learning_rate=3e-3)
vae.requires_grad_(False)  # from here on the densities are fixed: we only ask them questions
print("prior      ", vae.prior)
print("likelihood ", vae.decoder[-1])
print("guide      ", vae.encoder[-1])

# %% [markdown]
# ## The generative story
#
# To make a datum, draw $z \sim p(z)$, then $x \sim p(x|z)$: *ancestral sampling*. Two lines of
# code, or as one, `vae.sample(n)`. The same story is an ordinary Pyro program, `vae.model`, with
# sites "z" and "x"; running it on data scores them, and the score is the log of the joint density.

# %%
torch.manual_seed(0)
z = vae.prior().sample((10,))  # z ~ p(z)
made = vae.decode(z).sample()  # x ~ p(x|z)

x = x_test[:10]
with pv.handlers.own_store():  # Pyro's parameter store is global; this block has its own
    trace = pyro.poutine.trace(vae.model).get_trace(x)
z = trace.nodes["z"]["value"]
log_joint_by_hand = vae.decode(z).log_prob(x) + vae.prior().log_prob(z)
torch.testing.assert_close(trace.log_prob_sum(), log_joint_by_hand.sum())
print(f"Σ log p(x, z): Pyro {trace.log_prob_sum():.3f}, by hand {log_joint_by_hand.sum():.3f} nats")

fig, axes = plt.subplots(2, 1, figsize=(9, 3.4))
pv.plots.images(made, columns=10, ax=axes[0], title="drawn: z ~ p(z), then x ~ p(x|z)")
pv.plots.images(x, columns=10, ax=axes[1], title="held-out data")
fig.tight_layout()

# %% [markdown]
# A draw of $x$ has coin-flip noise in each pixel, because that is what the likelihood says.
#
# ## Bayes' rule on a lattice
#
# Numerator at each lattice point, sum for the denominator, divide. With area $\Delta$ per point,
#
# $$ \log p(x) \approx \log \sum_g p(x|z_g)\, p(z_g)\, \Delta. $$

# %%
axis = torch.linspace(-5, 5, 201)
log_area = 2 * (axis[1] - axis[0]).log()
lattice = torch.cartesian_prod(axis, axis)  # (201², 2)


def log_joint(x: torch.Tensor) -> torch.Tensor:
    """log p(x|z) + log p(z), (201², N)."""
    return vae.decode(lattice[:, None]).log_prob(x) + vae.prior().log_prob(lattice)[:, None]


x = x_test[:5]
log_numerator = log_joint(x)
log_px = (log_numerator + log_area).logsumexp(0)  # the evidence
log_posterior = log_numerator - log_px  # Bayes' rule
torch.testing.assert_close((log_posterior + log_area).exp().sum(0), torch.ones(5))

shuffled = x.flatten(1)[:, torch.randperm(x[0].numel())].reshape(x.shape)
packaged = pv.log_evidence(vae, x, method="grid").log_px
print("log p(x), lattice by hand:", *(f"{v:8.2f}" for v in log_px))
print("pv.log_evidence, 'grid':  ", *(f"{v:8.2f}" for v in packaged))
print(
    "the same pixels shuffled: ",
    *(f"{v:8.2f}" for v in (log_joint(shuffled) + log_area).logsumexp(0)),
)
print(f"fair coins, any image:     {-x[0].numel() * torch.tensor(2.0).log():8.2f}")

# %% [markdown]
# The evidence is a probability over all binary images of this size: digits get more of it than
# fair coins would give them, and so other images must get less. That is how a density "knows"
# digits.
#
# ## Posterior and guide side by side
#
# The encoder's answer $q(z|x) = N(\mu(x), \operatorname{diag} \sigma^2(x))$ is one pass through a
# network; the lattice is exact, and costs a decoder pass at each point. How different are they? We
# look at the held-out digit where they agree best, one in the middle, and the worst of a hundred.

# %%
some = x_test[:100] if limit is None else x_test[:6]
log_px = pv.log_evidence(vae, some, method="grid").log_px
elbo = pv.elbo_terms(vae, some, num_samples=500).log_weights.mean(0)
order = (log_px - elbo).argsort()
shown = order[[0, len(order) // 2, -1]]
fig, axes = plt.subplots(1, 3, figsize=(13, 4.2))
for ax, i in zip(axes, shown, strict=True):
    exact = log_joint(some[i : i + 1]).reshape(len(axis), -1)
    guide = vae.encode(some[i : i + 1])
    on_lattice = guide.log_prob(lattice).reshape(len(axis), -1)
    title = f"a {labels[i]}: log p(x) − ELBO = {log_px[i] - elbo[i]:.2f} nats"
    pv.plots.grid_posterior(exact, (axis, axis), log_guide=on_lattice, ax=ax, title=title)
    inset = ax.inset_axes([0.02, 0.02, 0.2, 0.2])
    inset.imshow(some[i].numpy(), cmap="gray_r")
    inset.set_axis_off()
for ax in axes[1:]:
    ax.get_legend().remove()  # the same key as in the first
fig.tight_layout()

# %% [markdown]
# ## The ELBO, and what it misses
#
# Take the logarithm of Bayes' rule, $\log p(x) = \log p(x, z) - \log p(z|x)$, which holds at every
# $z$. Add and subtract $\log q(z|x)$, and average over $z \sim q(z|x)$:
#
# $$ \log p(x) = \underbrace{\mathbb{E}_q\big[\log p(x, z) - \log q(z|x)\big]}_{\mathrm{ELBO}}
#   + \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)}_{\text{gap} \;\ge\; 0}. $$
#
# So the ELBO is a lower bound of the log evidence, and the bound is tight when guide and posterior
# are equal. Split $\log p(x, z)$ into likelihood and prior and it is minus the loss of tutorial 1:
#
# $$ \mathrm{ELBO} = \mathbb{E}_q[\log p(x|z)] - \mathrm{KL}\big(q(z|x)\,\|\,p(z)\big) = -\,l. $$
#
# **Two different KLs.** The one *in the loss* is from the guide to the **prior**; a good model has
# it well above zero. The one *in the gap* is from the guide to the **posterior**; zero would be
# perfect. On the lattice we can compute each piece and add them up.

# %%
x = some[shown]
log_numerator = log_joint(x).double()  # the sums below are over many points
log_px = (log_numerator + log_area).logsumexp(0)
log_q = vae.encode(x).log_prob(lattice[:, None]).double()  # (201², 3)
q = (log_q + log_area).softmax(0)
log_likelihood = log_numerator - vae.prior().log_prob(lattice)[:, None]
pieces = {
    "E_q[log p(x|z)]": (q * log_likelihood).sum(0),
    "− KL(q ‖ prior)": (q * (log_numerator - log_likelihood - log_q)).sum(0),
    "= ELBO": (q * (log_numerator - log_q)).sum(0),
    "+ KL(q ‖ posterior)": (q * (log_q - (log_numerator - log_px))).sum(0),
    "= log p(x)": log_px,
}
*_, elbo, gap, _ = pieces.values()
torch.testing.assert_close(elbo + gap, log_px)
for name, value in pieces.items():
    print(f"{name:24}", *(f"{v:9.3f}" for v in value))
minus_loss = -vae.loss(x.repeat(2000, 1, 1)).reshape(2000, -1).mean(0)
print(f"{'−vae.loss(x), averaged':24}", *(f"{v:9.3f}" for v in minus_loss))

# %% [markdown]
# ## One object, two readings, line by line
#
# | line of code | neural-net reading | probabilistic reading |
# |---|---|---|
# | `vae.encode(x)` | the encoder's cloud | guide $q(z \mid x)$, amortized |
# | `vae.encode(x).mean` | the code of $x$ | a summary of the guide |
# | `vae.decode(z)` | the decoder's output | likelihood $p(x \mid z)$ |
# | `vae.prior()` | target of the regularizer | prior $p(z)$ |
# | `loss_terms(x).reconstruction` | reconstruction error | $-\mathbb{E}_q[\log p(x \mid z)]$ |
# | `loss_terms(x).kl` | regularizer | information gained over the prior |
# | `vae.loss(x)` | loss $l_i$ | $-$ELBO$_i$ |
# | `vae.sample(n)` | decoding noise | ancestral sampling |
# | `vae.reconstruct(x)` | autoencoding | decoder's mean at one draw of the guide |
# | `pv.fit(vae, x)` | training | SVI: maximize the ELBO in both |
# | (none) | | evidence $\log p(x)$ |
# | weights of the decoder | what is trained | parameters $\theta$ of the model |
# | weights of the encoder | what is trained | parameters $\varphi$ of the guide |
#
# *Amortized* means that one function gives the guide of every $x$, in place of an optimization for
# each. A higher ELBO means more evidence, a smaller gap, or a trade of one for the other: $\varphi$
# can only change the gap (inference), $\theta$ changes both (learning). The next cell checks the
# lines that are equalities,
# against Pyro's own objectives, and takes a few training steps by hand with Pyro's `SVI`, which is
# what `fit` drives.

# %%
x = x_test[:50]
torch.manual_seed(3)
ours = vae.loss(x).sum()
with pv.handlers.own_store():
    torch.manual_seed(3)  # the same draws of z
    pyros = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
torch.testing.assert_close(ours, torch.tensor(pyros))
terms = vae.loss_terms(x)
guide, prior = vae.encode(x), vae.prior()
torch.testing.assert_close(terms.kl, torch.distributions.kl_divergence(guide, prior))
torch.manual_seed(4)
by_hand = vae.decode(prior.expand([5]).sample()).sample()
torch.testing.assert_close(by_hand, vae.sample(5, seed=4))
print(f"Σ loss = {ours:.3f} nats; Pyro's −ELBO on the same draws = {pyros:.3f} nats")

again = pv.build(x_train.shape[1:], latent_dim=2, hidden=(100, 100), seed=1)
with pv.handlers.own_store():
    svi = SVI(again.model, again.guide, Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [svi.step(batch) / len(batch) for batch in x_train.split(128)]
print("SVI by hand, −ELBO per datum:", *(f"{loss:.1f}" for loss in losses))

# %% [markdown]
# ## What would make this wrong
#
# - **Calling the ELBO the evidence.** A model with the higher ELBO may have the lower evidence,
#   when its guide fits better. Compare models by `pv.log_evidence`.
# - **A lattice that misses the posterior.** By hand, $[-5, 5]^2$ and 201 points a side must cover
#   it and resolve it; the check that the posterior sums to one cannot see what lies outside. The
#   package's grid widens and refines itself until the answer stands still.
# - **More latent dimensions.** The lattice grows as a power of their number: two is fine, ten is
#   hopeless. There, use importance sampling or annealing (tutorial 5).
# - **Believing $q(z|x)$ where it is not $p(z|x)$.** The right panel above. The network may have
#   answered badly for this image, or no normal density can bend or split as the posterior does;
#   tutorial 6 tells the two apart.
# - **Uncertainty about the weights.** The decoder's weights $\theta$ are one optimum, with no
#   posterior of their own; the uncertainty here is about $z$ only.
#
# ## Exercise
#
# Cover the lower half of an image. What is the posterior of $z$ given the upper half only, and
# what does it say about the covered pixels? Which term of Bayes' rule changes?
#
# **Answer.** The likelihood, and with it its integral, the denominator: the product over pixels
# leaves out those that were not observed.
# The prior and the decoder stay as they are, and no retraining is needed. Fewer pixels seen, and
# as a rule a wider posterior: the digit may be any that shares its upper half. `mask=` (true where
# observed) does
# it, exactly on the grid, since an encoder trained on whole images is no guide for half ones.

# %%
i = int((labels == 3).nonzero()[0])
x, mask = x_test[[i, i]], torch.ones_like(x_test[[i, i]], dtype=torch.bool)
mask[1, x.shape[1] // 2 :] = False  # the second row: the same image, lower half covered
posterior = pv.posterior.grid(vae, x, mask=mask, num_samples=1000)
spread = posterior.covariance.diagonal(dim1=-2, dim2=-1).sqrt()  # (2, D)
print("standard deviations of z, whole image seen:", *(f"{s:.2f}" for s in spread[0]))
print("standard deviations of z, upper half seen: ", *(f"{s:.2f}" for s in spread[1]))
fig, axes = plt.subplots(1, 4, figsize=(13, 3.6), width_ratios=(1.3, 0.6, 1, 1))
seen = torch.where(mask, x, 0.5)  # covered pixels in gray
pv.plots.images(seen, columns=1, ax=axes[1], title="seen")
for row, name in enumerate(("whole image", "upper half")):
    axes[0].scatter(*posterior.draws[0, :, row].T.numpy(), s=4, label=name)
    predicted = vae.decode(posterior.draws[0, :16, row]).mean
    title = f"p(x | z), z ~ p(z | {name})"
    pv.plots.images(predicted, columns=4, ax=axes[2 + row], title=title)
axes[0].set(xlabel="latent dimension 0", ylabel="latent dimension 1", title="draws of p(z | seen)")
axes[0].legend(markerscale=3)
fig.tight_layout()

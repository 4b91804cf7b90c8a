# %% [markdown]
# # 4 · Swapping the prior: does it matter?
#
# The prior $p(z)$ is one argument of `VAE(prior, encoder, decoder)`, and any density can stand
# there. Seven of them, on the same digits with the same networks:
#
# | prior | density | what it says |
# |---|---|---|
# | `StandardNormal` | $N(0, I)$ | one round heap |
# | `GaussianMixture` | $\sum_k \pi_k N(\mu_k, \sigma_k^2)$ | heaps, learned |
# | `VampPrior` | $\frac1K \sum_k q(z \mid u_k)$ | heaps at the codes of learned images $u_k$ |
# | `FlowPrior` | $N(f(z)) \, \lvert\det f'(z)\rvert$ | any shape, learned map $f$ |
# | Student-t | $\prod_d t_\nu(z_d)$ | one heap with heavy tails, by `Fixed` |
# | `HypersphericalUniform` | $1 / \text{area}$ on a sphere | no center, no edge |
# | your own | a ring of twelve heaps | a class of ten lines |
#
# Why should the prior matter at all? Averaged over data, the regularizer is
#
# $$ \frac1N \sum_i \mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big)
#   = I_q + \mathrm{KL}\big(q(z)\,\|\,p(z)\big),
#   \qquad q(z) = \frac1N \sum_i q(z|x_i), $$
#
# information that reconstruction needs, plus the mismatch between the crowd of all codes (the
# *aggregate posterior* $q(z)$) and the prior. **With the networks fixed, a better prior can raise
# the mean ELBO by at most the mismatch.** Trained together, the networks move the codes as well,
# to make the best
# of the prior that they are given. So the question is empirical, and the fair score is the
# evidence $\log p(x) = \log \int p(x|z)\, p(z)\, dz$ of held-out data, datum by datum.
#
# **From deep learning:** the prior is where you draw from to generate, and what the regularizer
# pulls towards. **From statistics:** with a learned prior this is empirical Bayes; the decoder is
# learned too, so $z$ has no meaning of its own that a prior could be wrong about.

# %%
import os

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch

import pyrovae as pv

epochs, limit, some = (1, 200, 15) if "PYROVAE_SMOKE" in os.environ else (50, None, None)
draws = 500

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]
x_test, labels = pv.datasets.binarize(data.test)[:some], data.test_labels[:some]
common = {"event_shape": x_train.shape[1:], "latent_dim": 2, "hidden": (100, 100), "seed": 0}

# %% [markdown]
# ## A prior of one's own
#
# A part is any `nn.Module` whose call returns a Pyro distribution over one vector $z$.
# `.to_event(1)` says that the last dimension is *one vector* (event shape), whose log-densities
# are summed to one number, and not a row of separate data (batch shape). The radius is learned
# with everything else. Nothing is registered anywhere.


# %%
class Ring(torch.nn.Module):
    """Twelve heaps on a circle, its radius learned."""

    def __init__(self):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self) -> dist.Distribution:
        angle = torch.arange(12) * (torch.pi / 6)
        loc = self.radius * torch.stack([angle.cos(), angle.sin()], -1)
        heaps = dist.Normal(loc, 0.3).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(12)), heaps)


student = pv.priors.Fixed(
    lambda df, loc: dist.StudentT(df, loc, 1.0).to_event(1), df=4.0, loc=torch.zeros(2)
)
print(Ring(), "\n", student)

# %% [markdown]
# ## Train them all
#
# `build` takes a prior by name; any other part is put together with the networks by `VAE` itself.
# That is the whole swap. The sphere needs a guide that lives on it, and its two-dimensional
# surface sits in three coordinates. One model is there twice, from **another seed**: how much do
# two runs of the same model differ? The weight of the KL rises from 0 to 1 over the first 30 % of
# training (a *warm-up*), for all alike: without it a model can settle on a code that says nothing,
# the sphere above all, whose clouds start out covering most of it.

# %%
models = {
    "normal": pv.build(**common),
    "mixture": pv.build(**common, prior={"name": "GaussianMixture", "num_components": 10}),
    "VampPrior": pv.build(**common, prior="VampPrior", data=x_train[:100]),
    "flow": pv.build(**common, prior="FlowPrior"),
    "sphere": pv.build(
        **common | {"latent_dim": 3}, prior="HypersphericalUniform", guide="PowerSpherical"
    ),
    "normal, seed 1": pv.build(**common | {"seed": 1}),
}
for name, prior in {"Student-t": student, "own ring": Ring()}.items():
    parts = pv.build(**common)
    models[name] = pv.VAE(prior, parts.encoder, parts.decoder)
for name, vae in models.items():
    seed = 1 if name == "normal, seed 1" else 0
    objective = pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.3))
    pv.fit(vae, x_train, objective=objective, epochs=epochs, learning_rate=3e-3, seed=seed)
    vae.requires_grad_(False)
    num_own = sum(w.numel() for n, w in vae.prior.named_parameters() if not n.startswith("encoder"))
    print(f"{name:15} prior has {num_own:6,} parameters of its own")
print(f"the ring's radius was 2 and is now {models['own ring'].prior.radius.item():.2f}")

# %% [markdown]
# ## Did it matter?
#
# Held-out $\log p(x)$, by quadrature in the plane where its cells suffice, else by importance
# sampling, and **paired** differences to the best model: some digits are hard for every model, and
# pairing takes that out of the error. Bars are two standard errors. The columns on the right say
# why: `MI` is $I_q$, then the mismatch $\mathrm{KL}(q(z)\,\|\,p(z))$, then the distortion.

# %%
comparison = pv.diagnostics.compare_priors(models, x_test)
print(comparison)
fig, ax = plt.subplots(figsize=(8, 4.6))
pv.plots.comparison(comparison, ax=ax)
fig.tight_layout()

# %% [markdown]
# Read it in this order.
#
# 1. **The yardstick** is the difference between the two runs of "normal". The bars cover which
#    digits came; they do not cover which seed trained. A prior whose advantage is of that size has
#    not been shown to matter.
# 2. **The mismatch column** is what another prior could gain if the networks stayed as they are.
#    Where two models differ in evidence by much more than that, the networks have most likely
#    moved (the evidence also contains the gap of the guide, so this is no proof).
# 3. **The distortion column** shows how: another prior leads the networks to another optimum, with
#    more or fewer nats through the bottleneck. The `VampPrior` builds its heaps out of the encoder
#    itself, so codes and prior can spread together; on the sphere the area is fixed.
#
# ## Where the codes went
#
# For each prior in the plane: its density (shaded) and one draw of $q(z|x)$ per held-out digit,
# colored by its label, which no model saw. The networks move the codes to fit whatever prior they
# were given, so look at the scales of the axes, too. (The shade is $\log p(z)$, down to 6 nats
# below its top.)

# %%
fig, axes = plt.subplots(2, 4, figsize=(9, 4.7))
torch.manual_seed(0)
for ax, (name, vae) in zip(axes.flat, models.items(), strict=True):
    codes = vae.encode(x_test).sample()
    if codes.shape[1] == 3:  # longitude and height: on a sphere these preserve areas
        codes = torch.stack([torch.atan2(codes[:, 1], codes[:, 0]), codes[:, 2]], 1)
        ax.set(xlabel="longitude", ylabel="height", facecolor="#dbe7f3")
    else:
        reach = 1.1 * codes.abs().max()
        line = torch.linspace(-reach, reach, 150)
        log_density = vae.prior().log_prob(torch.cartesian_prod(line, line)).reshape(150, 150)
        shade = log_density.clamp(min=log_density.max() - 6)
        ax.contourf(line, line, shade.T, 6, cmap="Blues")
        ax.set_aspect("equal")
    ax.scatter(*codes.T, c=labels, cmap="tab10", s=4)
    ax.set_title(name)
fig.tight_layout()

# %%
fig, axes = plt.subplots(2, 4, figsize=(11, 6.2))
for ax, (name, vae) in zip(axes.flat, models.items(), strict=True):
    torch.manual_seed(0)
    drawn = vae.decode(vae.prior().expand([25]).sample()).mean
    pv.plots.images(drawn, columns=5, ax=ax, title=f"from {name}")
    ax.set_xlabel("")
fig.tight_layout()

# %% [markdown]
# ## What would make this wrong
#
# - **One seed.** The yardstick above is one pair of runs. For a claim, train each model several
#   times and compare the spread between seeds with the spread between priors.
# - **Comparing ELBOs or KLs.** A prior changes both how well the guide fits and how much is coded;
#   only the evidence puts these on one scale.
# - **Importance sampling that falls short.** It underestimates $\log p(x)$, more so for a guide
#   that fits badly. `share_failed` counts digits for which no method gives more than a lower bound.
#   The cell below compares the exact numbers with importance sampling from the guide alone.
# - **Overfitted priors.** A mixture of many components can memorise training codes. Its mismatch
#   on *training* data is then no guide; everything here is on held-out data.
# - **Two dimensions.** With a bottleneck this narrow the codes are crowded, and the mismatch
#   leaves a prior little to fix. With more dimensions, and stronger decoders, the answer can
#   differ: change `latent_dim` above and run again.

# %%
few = x_test[:40]
sampled = pv.log_evidence(models["normal"], few, method="iwae", num_samples=draws).log_px
short = comparison.log_px["normal"][: len(few)] - sampled
error = short.std() / len(short) ** 0.5
print("'normal', exact minus sampled log p(x), nats:", end=" ")
print(f"mean {short.mean():.3f} ± {error:.3f}, largest {short.max():.3f}")

# %% [markdown]
# ## Exercise
#
# Take the trained "normal" model, freeze its networks, and fit a flow to its codes with
# `pv.refit_prior`. How much ELBO can this gain at the most, and how much does it gain? Is it more
# or less than what training with a flow from the start gave?
#
# **Answer.** At the most the mismatch $\mathrm{KL}(q(z)\,\|\,p(z))$ of that model: with the
# networks fixed, that is the only part of the ELBO with $p(z)$ in it. What it gains is a part of
# that; the rest is what the flow did not fit in so few epochs, and what does not carry over from
# training codes to held-out ones. Training everything together can gain more or less than that,
# since the networks then move too.

# %%
before = pv.diagnostics.decompose_elbo(models["normal"], x_test)
flow = pv.priors.FlowPrior(2)
refitted = pv.refit_prior(
    models["normal"], x_train, flow, validation=x_test, epochs=max(epochs // 10, 1)
)
print(f"mismatch to N(0, I), the most that can be gained: {before.marginal_kl} nats")
print(f"gained by the refitted flow:                      {refitted.gain} nats")
after = pv.diagnostics.decompose_elbo(refitted.vae, x_test)
print(f"mismatch left:                                    {after.marginal_kl} nats")

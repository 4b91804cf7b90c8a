# %% [markdown]
# # 9 · A shelf of programs: what if one vector of codes is not enough?
#
# A VAE has one latent vector for each datum. Many models need more structure: several layers, a
# class, several modalities, time, proportions. `pv.programs` has a small program for each, made of
# the same priors, guides and likelihoods, and everything else in the package takes them too:
# `fit`, `log_evidence`, `posterior.hmc`, `impute`, the diagnostics.
#
# | program | model of one datum |
# |---|---|
# | `LadderVAE` | $p(z_1)\, p(z_0 \mid z_1)\, p(x \mid z_0)$ |
# | `MixtureVAE` | $\sum_c p(c)\, p(z \mid c)\, p(x \mid z)$ |
# | `MultimodalVAE` | $p(z) \prod_m p(x_m \mid z)$ |
# | `DeepMarkovModel` | $p(z_0) \prod_t p(z_t \mid z_{t-1}) \prod_t p(x_t \mid z_t)$ |
# | `SequenceVAE` | $\mathrm{GP}(z \mid t) \prod_t p(x_t \mid z_t)$ |
# | `TopicVAE` | $p(\theta)\, \mathrm{Multinomial}(x; n, \theta B)$ |
# | `Measurement` | $p(z)\, \mathrm{Normal}(m; A\, \mathrm{E}[x \mid z], \sigma^2)$ |
#
# With $h$ for all latents of a datum, each is trained by the same bound,
#
# $$ \log p(x) \ge \mathrm{E}_{q(h|x)}\big[\log p(x, h) - \log q(h|x)\big], $$
#
# and differs in the factors of $p$ and $q$ only. Each section writes one of them, fits it in
# seconds, and asks it a question that a plain VAE could not answer. Where data are simulated, the
# truth is known, and the cell measures the error.
#
# **From deep learning:** these are architectures, but each arrow is a conditional density, so the
# loss follows from the model. **From statistics:** these are hierarchical and state-space models
# whose conditional densities are networks, with amortized posteriors.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import nn

import pyrovae as pv
from pyrovae.networks import mlp

plt.rcParams["figure.dpi"] = 75
smoke = "PYROVAE_SMOKE" in os.environ
if smoke:
    warnings.simplefilter("ignore")  # so few data and steps are a reason to warn
epochs, limit, few = (1, 100, 20) if smoke else (100, None, 200)
fitted = {"batch_size": 100, "learning_rate": 3e-3, "seed": 0}
faster = {"batch_size": 50, "learning_rate": 5e-3, "seed": 0}

data = pv.datasets.digits()  # 8×8 pixels
x, x_test = (pv.datasets.binarize(part)[:limit] for part in (data.train, data.test))
labels, labels_test = data.train_labels[:limit], data.test_labels[:limit]
print(f"{len(x)} digits to train on, {len(x_test)} held out")

# %% [markdown]
# ## A ladder: from coarse to fine
#
# $$ p(x, z) = p(z_1)\, p(z_0|z_1)\, p(x|z_0), \qquad
#   q(z_0|z_1, x) \propto N\big(z_0; m(x), s^2(x)\big)\, p(z_0|z_1). $$
#
# The guide corrects what the layer above predicts, instead of starting anew. Does each layer do
# something different? Ask what each knows about a digit: $\mathrm{E}[x|z_1]$ averages over all
# $z_0$ that the model finds plausible given $z_1$; $\mathrm{E}[x|z_0]$ does not have to. The weight
# of the KL grows from 0 to 1 during the first half of training, as in the paper.

# %%
torch.manual_seed(0)
q0, q1 = pv.guides.DiagonalNormal(8), pv.guides.DiagonalNormal(2)
p = pv.likelihoods.Bernoulli((8, 8))
ladder = pv.programs.LadderVAE(
    pv.priors.StandardNormal(2),
    [nn.Sequential(mlp(2, q0.num_features, hidden=(64,)), q0)],  # p(z_0|z_1)
    [nn.Sequential(nn.Flatten(), mlp(64, 128, hidden=(128,))), mlp(128, 64, hidden=(64,))],
    [
        nn.Sequential(nn.Linear(128, q0.num_features), q0),
        nn.Sequential(nn.Linear(64, q1.num_features), q1),
    ],
    nn.Sequential(mlp(8, p.num_features, hidden=(128,)), p),
)
warmup = pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.5))
pv.fit(ladder, x, epochs=2 * epochs, objective=warmup, **fitted)

terms = pv.elbo_terms(ladder, x_test, num_samples=few)
with torch.no_grad():
    torch.manual_seed(0)
    z1, z0 = terms.latents["z_1"], terms.latents["z_0"]  # (S, N, 2), (S, N, 8)
    means = {
        "z_1": ladder.decoder(ladder.layers[0](z1).sample()).mean.mean(0),
        "z_0": ladder.decoder(z0).mean.mean(0),
    }
    q_upper = ladder.heads[1](ladder.networks[1](ladder.networks[0](x_test)))
    kl = {"z_1": (q_upper.log_prob(z1) - ladder.prior().log_prob(z1)).mean()}
kl["z_0"] = terms.kl.mean() - kl["z_1"]
total = x_test.var(0).sum()
for name, mean in means.items():
    share = 1 - (x_test - mean).square().mean(0).sum() / total
    print(f"{name}: KL {kl[name]:.1f} nats, explains {share:.0%} of the variance of the pixels")

rows = torch.cat([x_test[:12], means["z_1"][:12], means["z_0"][:12]])
fig, ax = plt.subplots(figsize=(9, 2.6))
pv.plots.images(rows, columns=12, ax=ax, title="digits; what z_1 knows of them; what z_0 knows")
fig.tight_layout()

# %% [markdown]
# The upper layer spends few nats and knows the rough shape; the lower one adds the details, for
# most of the nats.
#
# ## A mixture: classes that nobody named
#
# $$ \mathrm{ELBO} = \mathrm{E}_{q(z|x)}\Big[\log p(x|z) + \log \sum_c p(c)\, p(z|c)
#   - \log q(z|x)\Big]. $$
#
# The guide has no $c$, because the sum over it is exact. Classes are found without labels; the
# labels tell afterwards what they mean, and `occupancy` tells whether some are empty.

# %%
num_classes = 20
vae = pv.build((8, 8), latent_dim=8, hidden=(128,), seed=0)
torch.manual_seed(0)
classes = pv.priors.Fixed(dist.Categorical, logits=torch.zeros(num_classes))
mixture = pv.programs.MixtureVAE(
    classes, pv.programs.NormalOfClass(num_classes, 8), vae.encoder, vae.decoder
)
pv.fit(mixture, x, epochs=epochs, **fitted)

found = mixture.occupancy(x)
of_class = found.responsibilities.T @ nn.functional.one_hot(labels, 10).to(found.counts)  # (K, 10)
name_of = of_class.argmax(1)
guess = name_of[mixture.occupancy(x_test).responsibilities.argmax(1)]
num_empty, least = int(found.is_empty.sum()), found.counts.min()
print(f"{num_empty} of {num_classes} classes are empty; the smallest holds {least:.0f} digits.")
print("Named by the majority of their members, they give", end=" ")
print(f"{(guess == labels_test).double().mean():.0%} of held-out digits the right name")

order = name_of.argsort()
with torch.no_grad():
    torch.manual_seed(1)
    c = order[:, None].expand(-1, 8)
    drawn = mixture.decoder(mixture.components(c).sample()).mean
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 7), width_ratios=(1, 1.1))
pv.plots.images(drawn.flatten(0, 1), columns=8, ax=left, title="draws of x, a row for each class")
share = of_class[order] / of_class[order].sum(1, keepdim=True)
picture = right.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
right.set(xticks=range(10), yticks=range(num_classes), yticklabels=order.tolist())
right.set(xlabel="label", ylabel="class", title="labels of its members")
fig.colorbar(picture, ax=right, label="share")
fig.tight_layout()

# %% [markdown]
# Many rows on the right are dark in one place: such a class is a way to write a digit, and a digit
# written in several ways has several. Other rows mix digits that look alike at this size. No class
# is empty, so that one could ask for more.
#
# ## Several modalities: any part predicts any other
#
# $$ q(z \mid x_\mathrm{seen}) \propto p(z) \prod_{m\ \mathrm{seen}} \tilde q_m(z|x_m). $$
#
# A digit as three modalities: its upper half, its lower half, its name. Training data lack each
# with probability 1/2, so that the guide learns to do without. `mask` says what is seen, and
# `impute` draws the rest from its posterior predictive.


# %%
class Name(nn.Module):
    """p(name|z), Categorical over ten names."""

    def __init__(self):
        super().__init__()
        self.network = mlp(8, 10, hidden=(64,))

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        return dist.Categorical(logits=self.network(z))


class NameEncoder(nn.Module):
    """q̃(z|name): a normal for each name."""

    def __init__(self):
        super().__init__()
        self.head = pv.guides.DiagonalNormal(8)
        self.table = nn.Embedding(10, self.head.num_features)

    def forward(self, name: torch.Tensor) -> dist.Distribution:
        return self.head(self.table(name.long()))


def parts_of(images: torch.Tensor, names: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"upper": images[:, :4], "lower": images[:, 4:], "name": names}


halves = {n: pv.build((4, 8), latent_dim=8, hidden=(128,), seed=0) for n in ("upper", "lower")}
torch.manual_seed(0)
multimodal = pv.programs.MultimodalVAE(
    pv.priors.StandardNormal(8),
    {n: half.encoder for n, half in halves.items()} | {"name": NameEncoder()},
    {n: half.decoder for n, half in halves.items()} | {"name": Name()},
)
seen = {n: torch.rand(len(x)) < 0.5 for n in ("upper", "lower", "name")}
seen["name"] |= ~(seen["upper"] | seen["lower"])  # something of each digit
pv.fit(multimodal, parts_of(x, labels), mask=seen, epochs=epochs, **fitted)

parts, means = parts_of(x_test, labels_test), {}
unknown = (x[:, 4:].mean(0) - parts["lower"]).square().mean()
print(f"squared error of the lower half: {unknown:.3f} per pixel by the mean digit")
for given in (["upper"], ["lower"], ["upper", "lower"], ["name"], ["upper", "name"]):
    mask = {n: torch.full((len(x_test),), n in given) for n in parts}
    filled = pv.impute(multimodal, parts, mask=mask, num_samples=few, num_proposals=10 * few)
    text = f"given {' and '.join(given)}:"
    if "name" not in given:
        right = filled.draws["name"].mode(0).values == labels_test
        text += f" {right.double().mean():.0%} of names right;"
    if "lower" not in given:
        error = (filled.mean["lower"] - parts["lower"]).square().mean()
        text += f" squared error of the lower half {error:.3f}"
    print(text)
    means[" and ".join(given)] = torch.cat([filled.mean["upper"], filled.mean["lower"]], 1)[:12]

rows = torch.cat([x_test[:12], means["upper"], means["name"], means["upper and name"]])
fig, ax = plt.subplots(figsize=(9, 3.4))
title = "digits; expected given the upper half; given the name; given both"
pv.plots.images(rows, columns=12, ax=ax, title=title)
fig.tight_layout()

# %% [markdown]
# More that is seen, less error, by one guide for all subsets. Where the upper half is ambiguous
# (second row), the expected lower half is a gray mixture, and the name resolves it (last row).
#
# ## A chain: forecasts with their error
#
# $$ p(x, z) = p(z_0) \prod_t p(z_t|z_{t-1})\, p(x_t|z_t), \qquad
#   q(z|x) = \prod_t q(z_t|z_{t-1}, h_t), \quad h_t = \mathrm{RNN}(x_{T-1} \ldots x_t). $$
#
# We **simulate** pendulums: the camera sees the position $(\sin\alpha, -\cos\alpha)$ with noise of
# 0.1, and never the speed. The state of the model has three dimensions and is not told what they
# are. Twenty times are given, and the next ten are to be forecast.


# %%
class Step(nn.Module):
    """p(z_t|z_{t−1}) = N(z_{t−1} + f(z_{t−1}), σ²)."""

    def __init__(self, dim: int):
        super().__init__()
        self.network = mlp(dim, dim, hidden=(64,))
        self.log_scale = nn.Parameter(torch.full((dim,), -2.0))

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        return dist.Normal(z + self.network(z), self.log_scale.exp()).to_event(1)


def pendulums(num: int, num_times: int) -> torch.Tensor:
    angle, speed, positions = 4 * torch.rand(num) - 2, torch.randn(num), []
    for _ in range(num_times):
        for _ in range(10):
            speed = speed - 0.09 * angle.sin()
            angle = angle + 0.03 * speed
        positions.append(torch.stack([angle.sin(), -angle.cos()], -1))
        speed = speed + 0.05 * torch.randn(num)
    return torch.stack(positions, 1) + 0.1 * torch.randn(num, num_times, 2)


torch.manual_seed(0)
swings = pendulums(120 if smoke else 600, 30)
train, past, future = swings[:-100, :20], swings[-100:, :20], swings[-100:, 20:]
q, p = pv.guides.DiagonalNormal(3), pv.likelihoods.Normal(2, scale=0.4, learn_scale=True)
markov = pv.programs.DeepMarkovModel(
    pv.priors.StandardNormal(3),
    Step(3),
    nn.Sequential(mlp(3, p.num_features, hidden=(64,)), p),
    nn.GRU(2, 32, batch_first=True),
    nn.Sequential(mlp(3 + 32, q.num_features, hidden=(64,)), q),
    latent_dim=3,
)
warmup = pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.3))
pv.fit(markov, train, epochs=epochs * 3 // 5 or 1, objective=warmup, **faster)

drawn = markov.forecast(past, steps=10, num_samples=few)  # (S, N, 10, 2)
low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
inside = ((low < future) & (future < high)).double().mean()
guesses = {"forecast": drawn.mean(0), "last seen": past[:, -1:], "mean": train.mean((0, 1))}
for name, guess in guesses.items():
    error = (guess - future).square().mean((0, 2)).sqrt()
    print(f"{name:9}: error {error[0]:.2f} one step ahead,", end=" ")
    print(f"{error[4]:.2f} five, {error[9]:.2f} ten")
print(f"90 % bands hold {inside:.0%} of the future;", end=" ")
print(f"the noise of 0.1 is learned as {p.scale.mean():.2f}")

fig, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
for i, ax in enumerate(axes):
    ax.fill_between(range(20, 30), low[i, :, 0], high[i, :, 0], color="C0", alpha=0.3, label="90 %")
    ax.plot(range(20, 30), drawn[:5, i, :, 0].T, color="C0", lw=0.6)
    ax.plot(range(20), past[i, :, 0], "k.", label="given")
    ax.plot(range(20, 30), future[i, :, 0], "r.", label="future")
    ax.set(xlabel="time", title=f"pendulum {i}")
axes[0].set_ylabel("horizontal position")
_ = axes[0].legend(fontsize="small")

# %% [markdown]
# The thin lines are draws: each is a whole future that swings like a pendulum. The error grows with
# the horizon, as the unknown speed matters more and more, and the bands say so; they are somewhat
# too wide.
#
# ## A Gaussian process: any times, and what lies between
#
# $$ p(x, z \mid t) = N\big(z; 0, K\big) \prod_t p(x_t|z_t), \qquad
#   K_{ij} = k\big(|t_i - t_j| / \ell\big). $$
#
# Data come at twelve irregular times, different for each datum; a chain with steps of one length
# does not apply. We **simulate** from $k(r) = e^{-r}$ with $\ell = 3$. The guide treats times as
# independent, which the posterior does not, so the ELBO prefers a model whose times *are* nearly
# independent: a short $\ell$. The tighter bound of `IWAE` is biased less. Between the data we draw
# from the posterior by HMC, to which the guide is only the start.

# %%
torch.manual_seed(0)
num_seen, between = 12, torch.linspace(0, 10, 41)
truth = pv.programs.GaussianProcess(1, pv.programs.ornstein_uhlenbeck, length_scale=3.0)
times = (10 * torch.rand(120 if smoke else 500, num_seen)).sort(1).values
times = torch.cat([times, between.expand(len(times), -1)], 1)
with torch.no_grad():
    path = truth(times).sample()[:, 0]
curve = torch.stack([path, (1.5 * path).sin()], -1) + 0.2 * torch.randn(*path.shape, 2)


def sequence_model() -> nn.Module:
    torch.manual_seed(0)
    q, p = pv.guides.DiagonalNormal(1), pv.likelihoods.Normal(2, scale=0.5, learn_scale=True)
    return pv.programs.SequenceVAE(
        pv.programs.GaussianProcess(1, pv.programs.ornstein_uhlenbeck),
        nn.Sequential(mlp(2, q.num_features, hidden=(64,)), q),
        nn.Sequential(mlp(1, p.num_features, hidden=(64,)), p),
    )


objectives = {"the ELBO": pv.objectives.TraceELBO(), "IWAE(20)": pv.objectives.IWAE(20)}
for name, objective in objectives.items():
    sequence = sequence_model()
    past, at = curve[:-20, :num_seen], times[:-20, :num_seen]
    pv.fit(sequence, past, at, epochs=epochs, objective=objective, **faster)
    length = nn.functional.softplus(sequence.prior.raw_length_scale).item()
    print(f"ℓ = 3 is learned as {length:.1f} by {name}")

when, order = times[-20:].sort(1)
full = curve[-20:].gather(1, order[..., None].expand(-1, -1, 2))
is_seen = order < num_seen
how = {"num_samples": 5, "num_warmup": 5} if smoke else {"num_samples": 100, "num_warmup": 150}
mask = is_seen[..., None].expand_as(full)
chains = pv.posterior.hmc(sequence, full, when, mask, num_leapfrog=20, **how)
with torch.no_grad():
    torch.manual_seed(0)
    drawn = sequence.decoder(chains.draws.flatten(0, 1)[..., None]).sample()  # (S, 20, T, 2)
low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
inside = ((low < full) & (full < high))[~is_seen].double().mean()
print(f"HMC: largest R̂ {chains.r_hat.max():.2f}. 90 % bands hold {inside:.0%} of what was hidden")

fig, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
for i, ax in enumerate(axes):
    ax.fill_between(when[i], low[i, :, 0], high[i, :, 0], color="C0", alpha=0.3, label="90 %")
    ax.plot(when[i][~is_seen[i]], full[i, ~is_seen[i], 0], "r.", ms=3, label="hidden")
    ax.plot(when[i][is_seen[i]], full[i, is_seen[i], 0], "k.", label="given")
    ax.set(xlabel="time", title=f"sequence {i}")
axes[0].set_ylabel("first number of x")
_ = axes[0].legend(fontsize="small")

# %% [markdown]
# The bands are narrow next to data and open up between them, which no interpolation by a line
# would say. They are honest here, although $\ell$ is still too short.
#
# ## Topics: codes that are proportions
#
# $$ \theta \sim \mathrm{Dirichlet}(0.3), \qquad x \sim \mathrm{Multinomial}(n, \theta B). $$
#
# The codes live on the simplex, and the rows of $B$, distributions over words, are read directly.
# The **simulated** vocabulary has 25 words, the cells of a 5×5 square; the ten topics are its rows
# and columns (Griffiths & Steyvers, 2004). A document has 60 words of few topics.

# %%
torch.manual_seed(0)
bars = torch.zeros(10, 5, 5)
for k in range(5):
    bars[k, k], bars[5 + k, :, k] = 0.2, 0.2
mixed = dist.Dirichlet(torch.full((10,), 0.1)).sample([200 if smoke else 2000]) @ bars.flatten(1)
cells = torch.multinomial(mixed, 60, replacement=True)
words = nn.functional.one_hot(cells, 25).sum(1).float()
documents, unread = words[:-100], words[-100:]


def topic_model(num_topics: int) -> nn.Module:
    torch.manual_seed(1)
    q = pv.guides.Dirichlet(num_topics)
    prior = pv.priors.Fixed(dist.Dirichlet, concentration=torch.full((num_topics,), 0.3))
    encoder = nn.Sequential(mlp(25, q.num_features, hidden=(64,)), q)
    program = pv.programs.TopicVAE(prior, encoder, pv.programs.Topics(num_topics, 25))
    pv.fit(program, documents, epochs=epochs, **fitted | {"learning_rate": 1e-2})
    return program


topics = topic_model(10)
learned = topics.topics.words.detach()  # (10, 25)
distance = 0.5 * (learned[:, None] - bars.flatten(1)).abs().sum(-1)  # total variation, (10, 10)
print("total variation between a true topic and the nearest learned one: at most", end=" ")
print(f"{distance.min(0).values.max():.2f}; between two true ones it is 0.8 or 1")

nearest = learned[distance.argmin(0)].reshape(-1, 5, 5)
pictures = {
    "documents": documents[:10].reshape(-1, 5, 5),
    "true topics, times 5": 5 * bars,
    "learned topics, the nearest to each": (5 * nearest).clamp(max=1),
}
fig, axes = plt.subplots(3, 1, figsize=(8, 3.4), layout="constrained")
for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
    pv.plots.images(picture, columns=10, ax=ax, title=title)

# %% [markdown]
# No document shows a topic alone, and yet each is found.
#
# ## A trained decoder as a prior: an inverse problem
#
# $$ z \sim p(z), \qquad m \sim N\big(A\, \mathrm{E}[x|z], \sigma^2\big). $$
#
# Somebody measures $m$, four numbers by four: each is the mean of 2×2 pixels, with noise. What was
# the digit? A VAE of digits knows what digits look like, and `Measurement` makes its decoder part
# of a model of $m$. Nothing is trained: $p(z|m)$ is sampled by HMC.

# %%
vae = pv.build((8, 8), latent_dim=8, hidden=(128,), seed=0)
pv.fit(vae, x, epochs=epochs, **fitted)


def blurred(images: torch.Tensor) -> torch.Tensor:
    return images.unflatten(-2, (4, 2)).unflatten(-1, (4, 2)).mean((-1, -3))


sigma, some = 0.1, 5 if smoke else 60
measurement = pv.programs.Measurement(vae.decoder, blurred, sigma)
problem = pv.VAE(vae.prior, pv.programs.PriorGuide(vae.prior), measurement)
torch.manual_seed(0)
measured = blurred(x_test[:some]) + sigma * torch.randn(some, 4, 4)
how = {"num_samples": 5, "num_warmup": 5} if smoke else {"num_samples": 300, "num_warmup": 300}
chains = pv.posterior.hmc(problem, measured, **how)
with torch.no_grad():
    images = vae.decode(chains.draws.flatten(0, 1)).mean  # (S, some, 8, 8)

large = measured.repeat_interleave(2, 1).repeat_interleave(2, 2)
guesses = {"the mean digit": x.mean(0), "the measurement": large, "E[x|m]": images.mean(0)}
for name, guess in guesses.items():
    print(f"squared error per pixel of {name}: {(guess - x_test[:some]).square().mean():.3f}")
variance = (images * (1 - images)).mean() + images.var(0).mean()
print(f"the posterior expects {variance:.3f} of E[x|m]")
print(f"R̂ is below 1.1 for {(chains.r_hat < 1.1).double().mean():.0%} of the digits")

rows = [large.clamp(0, 1), images[0], images[-1], images.mean(0), x_test[:some]]
fig, ax = plt.subplots(figsize=(9, 4.2))
title = "measured; a draw; another draw; E[x|m]; the digit"
pv.plots.images(torch.cat([row[:12] for row in rows]), columns=min(12, some), ax=ax, title=title)
fig.tight_layout()

# %% [markdown]
# The draws are sharp where the measurement leaves no doubt, and differ where it does. The posterior
# predicts its own error, and that is nearly the actual one. Where several digits fit a measurement,
# the posterior has several modes, chains move between them rarely, and $\hat R$ says so.
#
# ## What would make this wrong
#
# - **A structure that the data do not have.** A class, a chain or a topic is found wherever one
#   asks for it. Compare with a program without it, by `compare_priors`, on held-out data.
# - **Layers and states that are switched off.** More latents are more places for collapse. Look at
#   the KL of each (`decompose_elbo`, `collapsed_dimensions`) before you interpret them.
# - **Names given afterwards.** The accuracy of the mixture used labels to name the classes. It says
#   that the classes are meaningful, not that the model classifies.
# - **Missing at random.** Half of the modalities were hidden by a coin. If names are missing where
#   digits are hard to read, the model must say so.
# - **Bands that were right here.** The pendulum and the process were simulated from models close to
#   the fitted ones. For real data, hide what you know, and count.
# - **A guide that is too simple for its model.** It bends the model, as $\ell$ showed.
#   `inference_gaps` and `pareto_k` tell.
# - **A prior that has seen other things.** The inverse problem returns digits for any $m$, also for
#   that of a letter. Look at $\log p(m)$.
#
# ## Exercise
#
# Fit the topic model with six topics and with fifteen instead of ten. What do the topics look like,
# and does the evidence of unread documents tell which number is right?
#
# **Answer.** With six, several topics are sums of bars, and the evidence drops by many nats. With
# fifteen, most bars are there, others are split, and the rest are nearly uniform; the evidence
# drops by a few nats, because documents spread over topics that nobody needs. Ten is best.

# %%
models = {f"{num} topics": topic_model(num) for num in (6, 15)} | {"10 topics": topics}
compared = pv.diagnostics.compare_priors(models, unread, num_samples=50 if smoke else 1000)
print("log p(x) of unread documents, nats, and how far below the best:")
for row in compared.rows:
    print(f"  {row.name:10} {row.log_px}   {row.difference}")

fig, axes = plt.subplots(2, 1, figsize=(8, 2.4), layout="constrained")
for ax, (name, model) in zip(axes, list(models.items())[:2], strict=True):
    pictures = (5 * model.topics.words.detach()).clamp(max=1).reshape(-1, 5, 5)
    pv.plots.images(pictures, columns=15, ax=ax, title=f"{name}, times 5")

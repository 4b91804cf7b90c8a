# %% [markdown]
# # 1 · What is a VAE? The neural-net perspective
#
# *A VAE is an autoencoder whose code is a cloud instead of a point, with a price on how much the
# cloud says.* Three parts, with $\varepsilon \sim N(0, I)$ for noise:
#
# | part | takes | gives |
# |---|---|---|
# | **encoder** | an image $x$ | center $\mu(x)$ and widths $\sigma(x)$ of a cloud of codes |
# | **bottleneck** | $\mu, \sigma, \varepsilon$ | one code, $z = \mu + \sigma \odot \varepsilon$ |
# | **decoder** | a code $z$ | for each pixel, the probability $\pi_j(z)$ of ink |
#
# The loss of one image $x_i$ has two terms,
#
# $$ l_i = \underbrace{-\,\mathbb{E}_{z \sim q(z|x_i)}\big[\log p(x_i|z)\big]}
#   _{\text{reconstruction: how badly the decoder predicts } x_i}
#   + \underbrace{\mathrm{KL}\big(q(z|x_i)\,\|\,p(z)\big)}
#   _{\text{regularizer: how far the cloud is from } N(0, I)} $$
#
# where $q(z|x) = N\big(\mu(x), \operatorname{diag} \sigma^2(x)\big)$ is the cloud,
# $p(z) = N(0, I)$ is where the regularizer pulls it, and $p(x|z)$ is what the decoder says about
# the pixels. Training is gradient descent on the mean of $l_i$ over the images. In this notebook
# we compute both terms by hand.
#
# **If you come from statistics:** a *neural network* here is a function with many coefficients
# (*weights*), made of matrix products with a simple nonlinear function between them; *training* is
# minimizing the mean loss by gradient steps on random subsets (*minibatches*). One pass through
# all images is an *epoch*. In torch a function with weights is a *module*, `Sequential` composes
# modules, `backward()` computes the derivative of the loss by every weight, an *optimizer* such as
# Adam takes the step, and `no_grad` or `requires_grad_(False)` says that no derivative is wanted.
# The same object read as a probability model is [tutorial
# 2](02_what_is_a_vae_probability_model.ipynb).

# %%
import os
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.nn import Sequential

import pyrovae as pv

epochs, limit = (2, 200) if "PYROVAE_SMOKE" in os.environ else (100, None)

data = pv.datasets.digits()  # 8×8 pixels; with pv.datasets.mnist() the same cells do 28×28
x_train = pv.datasets.binarize(data.train)[:limit]  # ink where gray > 0.5: each pixel is 0 or 1
x_test, labels = pv.datasets.binarize(data.test), data.test_labels
event_shape = x_train.shape[1:]
print(f"{len(x_train)} training images, {len(x_test)} held out, each of shape {tuple(event_shape)}")

# %% [markdown]
# ## The parts
#
# A *network* turns an image into a plain vector of numbers, its *features*. A *head* is a last
# layer that reads the features as a probability density: the first half of them as $\mu$, the
# other half, made positive, as $\sigma$. So `Sequential(network, head)` is the encoder, and its
# output is not a vector but a **distribution** with a mean, a width and a method to draw from it.
# The decoder is built likewise; its head reads the features as *logits* $\ell_j$, with
# $\pi_j = 1 / (1 + e^{-\ell_j})$.
#
# The bottleneck has two numbers here, so that we can draw it. More keep more of each
# image; tutorial 5 takes ten.

# %%
torch.manual_seed(0)  # the initial weights are random
latent_dim = 2
q = pv.guides.DiagonalNormal(latent_dim)  # a head knows how many features it needs
p = pv.likelihoods.Bernoulli(event_shape)
vae = pv.VAE(
    prior=pv.priors.StandardNormal(latent_dim),
    encoder=Sequential(pv.networks.mlp(event_shape, q.num_features, hidden=(100, 100)), q),
    decoder=Sequential(pv.networks.mlp(latent_dim, p.num_features, hidden=(100, 100)), p),
)
for name in ("encoder", "decoder"):
    part = getattr(vae, name)
    print(f"{name}: {sum(w.numel() for w in part.parameters()):,} weights\n{part}\n")

# %% [markdown]
# ## The forward pass
#
# Image → cloud → one code → one probability per pixel. Drawing the code as
# $\mu + \sigma \odot \varepsilon$ rather than asking a random generator for "a draw from
# $N(\mu, \sigma^2)$" is the *reparametrisation trick*: the noise comes from outside, so $z$ is a
# differentiable function of $\mu$ and $\sigma$, and gradients pass through the bottleneck into the
# encoder.

# %%
x = x_train[:5]
cloud = vae.encode(x)  # q(z|x): five clouds
mu, sigma = cloud.mean, cloud.stddev
torch.manual_seed(1)
z = mu + sigma * torch.randn_like(mu)
pixels = vae.decode(z)  # p(x|z): five images of probabilities
logits, ink = pixels.base_dist.logits, pixels.mean
print("μ", tuple(mu.shape), " σ", tuple(sigma.shape), " z", tuple(z.shape), " π", tuple(ink.shape))

# %% [markdown]
# ## The two terms by hand
#
# **Reconstruction.** Given the code, the decoder treats the pixels as independent coin flips,
# pixel $j$ with probability $\pi_j$ of ink. The probability of the whole image is the product over
# pixels, so its negative logarithm is a sum: the *Bernoulli negative log-likelihood*, known to
# deep learning as the binary cross-entropy,
#
# $$ -\log p(x|z) = -\sum_j \big[\, x_j \log \pi_j + (1 - x_j) \log (1 - \pi_j) \,\big]. $$
#
# **Regularizer.** The Kullback–Leibler divergence
# $\mathrm{KL}(q\|p) = \mathbb{E}_{z\sim q}[\log q(z) - \log p(z)]$ says how far $q$ is from $p$:
# it is never negative, and zero only if they are
# equal. Between two normal densities it is a formula,
#
# $$ \mathrm{KL}\big(N(\mu, \operatorname{diag} \sigma^2)\,\|\,N(0, I)\big)
#   = \tfrac12 \sum_d \big( \mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2 \big) \;\ge\; 0, $$
#
# zero only for $\mu = 0, \sigma = 1$: a cloud that is the same for every image, and so says
# nothing. A cloud far out or very narrow is expensive. Natural logarithms, so the unit is the
# *nat* ($\log 2$ nats are one bit).

# %%
reconstruction = -(x * ink.log() + (1 - x) * (1 - ink).log()).sum((1, 2))
kl = 0.5 * (mu**2 + sigma**2 - 1 - (sigma**2).log()).sum(1)

torch.manual_seed(1)  # the same ε as above
loss = vae.loss(x)
torch.testing.assert_close(reconstruction + kl, loss)
as_cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2))
torch.testing.assert_close(as_cross_entropy, reconstruction)
print("image   reconstruction + KL    = by hand   vae.loss     (nats, before training)")
for i, row in enumerate(zip(reconstruction, kl, reconstruction + kl, loss, strict=True)):
    print(f"{i:5} {row[0]:16.4f} {row[1]:8.4f} {row[2]:10.4f} {row[3]:10.4f}")

# %% [markdown]
# The columns agree to rounding (the cell would stop if they did not). Four lines of arithmetic are
# the whole loss. `vae.loss_terms(x)` gives the two terms by name.
#
# ## Training
#
# The loop of any PyTorch model works: `vae.loss(batch).mean().backward()`, then a step of an
# optimizer. `pv.fit` is that loop with Adam, shuffled minibatches, seeds and checks; it minimizes
# the same loss. It records $-l$ under the name ELBO; tutorial 2 says why it has a name.

# %%
optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
for batch in x_train.split(128):  # one pass by hand …
    optimizer.zero_grad()
    vae.loss(batch).mean().backward()
    optimizer.step()

# … and the rest of them:
history = pv.fit(vae, x_train, validation=x_test, epochs=epochs, learning_rate=3e-3)
fig = plt.figure(figsize=(10, 3.2))
panels = pv.plots.training_curve(history, fig=fig)

# %% [markdown]
# Reconstruction falls while the KL rises: the network buys better pictures by telling more through
# the bottleneck, as long as a nat of KL saves more than a nat of reconstruction. The dashed line
# is held-out images. Where the lines part, the decoder learns the training images by heart; given
# `validation=`, `fit` stops when the held-out loss no longer falls, and keeps the best weights. (A
# last, fair score then needs a third set of images.)
#
# ## What the trained network does

# %%
fig, axes = plt.subplots(2, 1, figsize=(9, 3.2))
pv.plots.reconstructions(x_test[:12], vae.reconstruct(x_test[:12], seed=0), columns=12, ax=axes[0])
z = vae.prior().sample((12,))  # noise in, images out: no encoder
with torch.no_grad():
    made = vae.decode(z).mean
pv.plots.images(made, columns=12, ax=axes[1], title="decoded from z ~ N(0, I)")
fig.tight_layout()

# %%
with torch.no_grad():
    codes = vae.encode(x_test).mean
    line = torch.linspace(-2.1, 2.1, 15)
    sheet = vae.decode(torch.cartesian_prod(line, line)).mean
fig, axes = plt.subplots(1, 2, figsize=(12, 5))
pv.plots.latent_scatter(codes, labels, ax=axes[0], title="μ(x) of the held-out images")
pv.plots.latent_manifold(sheet, line, ax=axes[1], title="what the decoder makes of each place")
fig.tight_layout()

# %% [markdown]
# Left, where the encoder puts held-out digits; it never saw a label. Right, what the decoder makes
# of each place. Both are filled without holes and change smoothly, because every image was decoded
# from a whole cloud, and the clouds are pulled to one place. A plain autoencoder has neither
# reason; [tutorial 3](03_what_the_regularizer_is_for.ipynb) takes the regularizer away and looks.
#
# ## What would make this wrong
#
# - **A mean over pixels instead of a sum.** `reduction="mean"` divides the reconstruction term by
#   the number of pixels and leaves the KL as it is. The code then looks right, trains, and the
#   bottleneck falls silent. The next cell does it.
# - **Gray pixels in a coin-flip likelihood.** $\pi^x (1-\pi)^{1-x}$ is no probability for
#   $0 < x < 1$. `pyrovae` refuses such data; use `pv.likelihoods.ContinuousBernoulli`, or binarize
#   as above.
# - **σ read as log σ² or the reverse.** The loss still falls. The comparison by hand above is the
#   test.
# - **One noisy number.** The loss uses one draw of $z$ per image. Compare models on averages over
#   many images and draws, never on the loss of a single batch.
# - **Small loss, useless code.** The loss says how well images are *predicted*, not whether $z$ is
#   meaningful.

# %%
wrong = pv.build(event_shape, latent_dim=latent_dim, hidden=(100, 100), seed=0)
num_pixels = event_shape.numel()
# reconstruction / num_pixels + KL, multiplied by num_pixels, is the loss with KL weight num_pixels
objective = pv.objectives.BetaELBO(float(num_pixels))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pv.fit(wrong, x_train, objective=objective, epochs=epochs, learning_rate=3e-3)
print(f"nats per held-out image, {num_pixels} pixels   reconstruction      KL")
for name, model in {"sum over pixels": vae, "mean over pixels": wrong}.items():
    found = pv.diagnostics.decompose_elbo(model, x_test)
    print(f"{name:38} {found.mean_reconstruction.value:12.2f} {found.mean_kl.value:7.2f}")
for warning in caught:
    print("\nfit warns:", warning.message)

# %% [markdown]
# With the mean, the KL is (nearly) zero: every image gets the same cloud, and the decoder draws
# the average digit. This is *posterior collapse*, here by a factor in the loss, and `fit` says so.
#
# ## Exercise
#
# Many VAEs are trained with the squared error $\sum_j (x_j - \hat x_j)^2$ as the reconstruction
# term. Which density $p(x|z)$ is that? What does the choice "plain squared error, KL weight 1"
# assume about the data?
#
# **Answer.** A normal density around the prediction with one fixed $\sigma$:
#
# $$ -\log N(x; \hat x, \sigma^2 I)
#   = \frac{1}{2\sigma^2} \sum_j (x_j - \hat x_j)^2 + \sum_j \log\big(\sigma \sqrt{2\pi}\big). $$
#
# The second sum does not depend on any weight. So plain squared error is $\sigma = 1/\sqrt2$: the
# claim that each pixel in $[0, 1]$ strays from its prediction by $1/\sqrt2$, most of its range.
# Few codes are worth their KL under such noise. Changing the "weight of the KL" and changing
# $\sigma$ are the same thing; only $\sigma$ can be learned from data. The cell checks the
# identity.

# %%
gray = data.train[:5]
sigma_pixel = 0.5**0.5
head = pv.likelihoods.Normal(event_shape, scale=sigma_pixel)
predicted = torch.rand(5, *event_shape)
nll = -head(predicted.flatten(1)).log_prob(gray)
squared_error = ((gray - predicted) ** 2).sum((1, 2))
constant = num_pixels * torch.tensor(sigma_pixel * (2 * torch.pi) ** 0.5).log()
torch.testing.assert_close(nll, squared_error + constant)

for name, value in {
    "−log N(x; x̂, σ²)": nll,
    "squared error + constant": squared_error + constant,
}.items():
    print(f"{name:26}", *(f"{v:8.3f}" for v in value))

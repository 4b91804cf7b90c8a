"""Programs with a second latent, against linear-Gaussian models whose every term is exact."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Stretched, unchanged
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.core.terms import draw_traces, terms_of
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import data_scale
from pyrovae.networks import Concat, Given, OneHot, mlp, start_at_mean
from pyrovae.objectives import BetaELBO, TraceELBO
from pyrovae.programs import (
    BayesianVAE,
    CategoricalHead,
    GivenGlobal,
    SemiSupervisedVAE,
    partly_known,
)
from pyrovae.programs.semi_supervised import certain
from tests.test_distributed import ROWS, still_hierarchical


def summed_out() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


def posterior(base: LinearGaussian, centered: torch.Tensor, sd_factor: float = 1.0):
    """p(z|x) of the linear-Gaussian model at x − mean, for any leading dimensions."""
    loc = centered @ torch.linalg.solve(base.m, base.weight.T).T
    root = base.sigma * torch.linalg.cholesky(torch.linalg.inv(base.m))
    return dist.MultivariateNormal(loc, scale_tril=sd_factor * root)


# ---- M2 with exact parts: y ~ Cat(π), z ~ N(0, I), x | z, y ~ N(W z + μ_y, σ² I)


class Mixture(nn.Module):
    """The exact log p(x|y), p(y|x) and log p(x); q(z|x, y) is exact, q(y|x) is not unless asked."""

    def __init__(self, sd_factor: float = 1.0):
        super().__init__()
        self.base = LinearGaussian()
        self.means = 1.5 * torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
        self.probs = torch.tensor([0.2, 0.5, 0.3])
        self.sd_factor = sd_factor

    def log_joint(self, x):
        """log p(x, y), (N, K)."""
        centered = x[:, None] - self.means + self.base.mean
        return self.base.log_evidence(centered) + self.probs.log()

    def encoder(self):
        class Posterior(nn.Module):
            def forward(_, x, y):
                return posterior(self.base, x - self.means[y], self.sd_factor)

        return Given(Posterior())

    def decoder(self):
        class Likelihood(nn.Module):
            def forward(_, z, y):
                loc = z @ self.base.weight.T + self.means[y]
                return dist.Normal(loc, self.base.sigma).to_event(1)

        return Given(Likelihood())

    def exact_classifier(self):
        class Posterior(nn.Module):
            def forward(_, x):
                return dist.Categorical(logits=self.log_joint(x))

        return Posterior()

    def program(self, classifier=None, alpha=0.0) -> SemiSupervisedVAE:
        torch.manual_seed(1)
        return SemiSupervisedVAE(
            pv.priors.StandardNormal(2),
            self.encoder(),
            self.decoder(),
            classifier or nn.Sequential(nn.Linear(5, 3), CategoricalHead(3)),
            pv.priors.Fixed(dist.Categorical, probs=self.probs),
            alpha=alpha,
        )

    def sample(self, n):
        y = torch.multinomial(self.probs, n, replacement=True)
        return self.base.sample(n) - self.base.mean + self.means[y], y


def by_hand(truth, program, x, y):
    """Σ_i ELBO_i and Σ_known log q(y_i|x_i), enumerated over labels; exact where q(z|x, y) is."""
    log_q = program.classifier(x).logits
    log_joint = truth.log_joint(x)
    known = y >= 0
    unlabeled = (log_q.exp() * (log_joint - log_q)).sum(-1)
    labeled = log_joint.gather(-1, y.clamp(min=0)[:, None])[:, 0]
    log_q_label = log_q.gather(-1, y.clamp(min=0)[:, None])[:, 0]
    return torch.where(known, labeled, unlabeled).sum(), (known * log_q_label).sum()


LABELS = {"all unknown": [-1] * 6, "all known": [0, 1, 2, 2, 1, 0], "some": [0, -1, 2, -1, -9, 0]}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_elbo_is_the_sum_over_labels(labels, alpha, float64):
    truth = Mixture()
    program, y = truth.program(alpha=alpha), torch.tensor(labels)
    x, _ = truth.sample(6)
    loss = summed_out().loss(program.model, program.guide, x, y)
    elbo, log_q = by_hand(truth, program, x, y)
    # no Monte-Carlo error: q(z|x, y) is exact, so each draw of z gives log p(x|y)
    assert loss == pytest.approx(-(elbo + alpha * log_q).item(), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_its_gradient_too(labels, float64):
    truth = Mixture()
    program, y = truth.program(alpha=3.0), torch.tensor(labels)
    x, _ = truth.sample(6)
    loss = summed_out().differentiable_loss(program.model, program.guide, x, y)
    ours = torch.autograd.grad(loss, program.classifier.parameters())
    elbo, log_q = by_hand(truth, program, x, y)
    exact = torch.autograd.grad(-(elbo + 3.0 * log_q), program.classifier.parameters())
    for a, b in zip(ours, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_the_sum_over_labels_can_fail(float64):
    """Negative controls: another p(y), and a posterior 0.8 times as wide."""
    truth, wide = Mixture(), Mixture(sd_factor=0.8)
    x, _ = truth.sample(6)
    y = torch.tensor(LABELS["some"])
    exact = -by_hand(truth, truth.program(), x, y)[0].item()
    uniform = truth.program()
    uniform.label_prior = pv.priors.Fixed(dist.Categorical, probs=torch.ones(3) / 3)
    for program in (uniform, wide.program()):
        with pyro.get_param_store().scope():
            loss = summed_out().loss(program.model, program.guide, x, y)
        assert loss != pytest.approx(exact, abs=1e-2)


def test_no_labels_and_all_unknown_are_the_same(float64):
    truth = Mixture()
    program, (x, _) = truth.program(), truth.sample(6)
    unknown = torch.full((6,), -1)
    assert summed_out().loss(program.model, program.guide, x) == pytest.approx(
        summed_out().loss(program.model, program.guide, x, unknown), abs=1e-10
    )


@pytest.mark.parametrize("filler", [-1.0, 2.0, 99.0, math.nan])
def test_y_mask_says_which_labels_are_known_regardless_of_the_others(filler, float64):
    truth = Mixture()
    program, (x, y) = truth.program(alpha=2.0), truth.sample(6)
    y_mask = torch.tensor([True, False, True, False, False, True])
    labels = partly_known(torch.where(y_mask, y.double(), filler), y_mask)
    assert torch.equal(labels, torch.where(y_mask, y, -1))
    elbo, log_q = by_hand(truth, program, x, labels)
    loss = summed_out().loss(program.model, program.guide, x, labels)
    assert loss == pytest.approx(-(elbo + 2.0 * log_q).item(), abs=1e-10)


@pytest.mark.parametrize(
    ("y", "y_mask", "message"),
    [
        ([0, 1], [True], r"y_mask has shape \(1,\) and y \(2,\).*must hold true"),
        ([0, 1], [1.0, 0.5], "must hold true .known. or false for each label"),
        ([0.0, 0.5], [True, True], r"y\[1\] = 0.5 is marked as known.*\n?.*\(1 of 2"),
        ([-2, 0], [True, False], r"y\[0\] = -2 is marked as known"),
        ([math.nan, 0.0], [True, True], r"y\[0\] = nan is marked as known"),
        (["a", "b"], [True, True], "y has dtype"),
    ],
)
def test_invalid_labels_are_refused_under_y_mask(y, y_mask, message):
    with pytest.raises(DataError, match=message):
        partly_known(y, y_mask)


def test_exact_parts_give_the_evidence(float64):
    """With q(y|x) exact as well, ELBO = log p(x), by draws of y too."""
    truth = Mixture()
    program, (x, _) = truth.program(truth.exact_classifier()), truth.sample(6)
    evidence = truth.log_joint(x).logsumexp(-1)
    loss = summed_out().loss(program.model, program.guide, x)
    assert loss == pytest.approx(-evidence.sum().item(), abs=1e-10)
    drawn = pv.elbo_terms(program, x, num_samples=9)
    assert torch.allclose(drawn.log_weights, evidence.expand(9, 6), atol=1e-10)


def test_terms_of_labeled_data_are_those_of_x_and_y(float64):
    """elbo_terms uses a known label, and leaves out the α term."""
    truth = Mixture()
    program, (x, y) = truth.program(alpha=50.0), truth.sample(6)
    terms = pv.elbo_terms(program, x, y, num_samples=9)
    assert torch.equal(terms.latents["y"], y.expand(9, 6))
    exact = truth.log_joint(x).gather(-1, y[:, None])[:, 0]
    assert torch.allclose(terms.log_weights, exact.expand(9, 6), atol=1e-10)


def test_the_model_alone_knows_the_labels(float64):
    truth = Mixture()
    program, (x, y) = truth.program(), truth.sample(4)
    right = poutine.condition(program.model, {"y": y})
    wrong = poutine.condition(program.model, {"y": (y + 1) % 3})
    log_right, log_wrong = (
        poutine.trace(m).get_trace(x, y).nodes["label"]["fn"].log_factor for m in (right, wrong)
    )
    assert torch.equal(log_right, torch.zeros(4))
    assert (log_wrong.exp() == 0).all()


def test_minibatch_scale_multiplies_the_enumerated_loss(float64):
    truth = Mixture()
    program, (x, y) = truth.program(alpha=2.0), truth.sample(6)
    y[::2] = -1
    plain = summed_out().loss(program.model, program.guide, x, y)
    with data_scale(2.5):
        scaled = summed_out().loss(program.model, program.guide, x, y)
    assert scaled == pytest.approx(2.5 * plain, abs=1e-9)


# ---- M2 with networks


def m2(num_classes=10, event=(8, 8), alpha=10.0, hidden=(64,)) -> SemiSupervisedVAE:
    size = math.prod(event)
    q, p = pv.guides.DiagonalNormal(3), pv.likelihoods.Bernoulli(event)
    c, of_y = CategoricalHead(num_classes), OneHot(num_classes)
    encoder = mlp(size + num_classes, q.num_features, hidden=hidden)
    decoder = mlp(3 + num_classes, p.num_features, hidden=hidden)
    return SemiSupervisedVAE(
        pv.priors.StandardNormal(3),
        Given(Concat(nn.Sequential(encoder, q), of_x=nn.Flatten(-len(event)), of_y=of_y)),
        Given(Concat(nn.Sequential(decoder, p), of_y=of_y)),
        nn.Sequential(mlp(event, num_classes, hidden=hidden), c),
        pv.priors.Fixed(dist.Categorical, probs=torch.full((num_classes,), 1 / num_classes)),
        alpha=alpha,
    )


def some_labels(labels: torch.Tensor, per_class: int, seed: int = 0) -> torch.Tensor:
    """The labels, −1 for all but `per_class` of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    known = torch.cat([order[labels[order] == k][:per_class] for k in labels.unique()])
    return torch.full_like(labels, -1).index_copy(0, known, labels[known])


def test_fit_trains_every_parameter_and_classifies():
    data = pv.datasets.digits()
    x, x_test = pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
    program = m2(hidden=(32,))
    before = {n: t.clone() for n, t in program.named_parameters()}
    y = some_labels(data.train_labels, 20)
    history = pv.fit(
        program, x, y, objective=summed_out(), epochs=6, batch_size=100, learning_rate=2e-2
    )
    assert history[-1].elbo > history[0].elbo
    assert all((t != before[n]).any() for n, t in program.named_parameters())
    probs = program.classify(x_test)
    assert torch.allclose(probs.sum(-1), torch.ones(len(x_test)))
    # 0.1 is chance; 200 labels of 1437
    assert (probs.argmax(-1) == data.test_labels).float().mean() > 0.8


def test_the_default_objective_draws_the_label():
    """It takes Pyro's score-function gradient: noisy, but it runs."""
    x = (torch.rand(20, 2, 3) < 0.5).float()
    program = m2(3, (2, 3))
    y = torch.tensor([0, 1, 2, -1, -1] * 4)
    history = pv.fit(program, x, y, epochs=2)
    assert math.isfinite(history[-1].elbo)


def test_ordinary_pyro_calls_work():
    x = (torch.rand(5, 2, 3) < 0.5).float()
    y = torch.tensor([0, -1, 2, -1, 1])
    program = m2(3, (2, 3))
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 2e-2}), summed_out())
    losses = [svi.step(x, y) for _ in range(50)]
    assert sum(losses[-10:]) < sum(losses[:10])
    draws = Predictive(program.model, guide=program.guide, num_samples=4)(x, y)
    assert (draws["y"].reshape(4, 5)[:, y >= 0] == y[y >= 0]).all()
    replicated = Predictive(poutine.uncondition(program.model), num_samples=4)(x)
    assert replicated["x"].shape == (4, 5, 2, 3)
    assert pv.log_evidence(program, x, num_samples=20).log_px.shape == (5,)


def test_masked_cells_are_inert():
    program = m2(3, (2, 3))
    x = (torch.rand(5, 2, 3) < 0.5).float()
    mask = torch.rand(5, 2, 3) < 0.6
    y = torch.tensor([0, -1, 2, -1, 1])
    losses = []
    for filler in (0.0, 1e30, math.nan):
        torch.manual_seed(0)
        filled = torch.where(mask, x, filler)
        losses.append(summed_out().loss(program.model, program.guide, filled, y, mask))
        assert torch.equal(program.classify(filled, mask), program.classify(x * mask, mask))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"dtype torch.float32 and shape \(2,\).*\n?.*y\.long\(\)"),
        (torch.eye(2, 3).long(), r"shape \(2, 3\), but labels are one whole number.*\n?.*argmax"),
        (torch.tensor([3, -1]), r"y\[0\] = 3, but there are 3 classes.*\n?.*-1 where.*unknown"),
    ],
)
def test_labels_are_checked_before_training(y, message):
    program = m2(3, (2, 3))
    with unchanged(program), pytest.raises(DataError, match=message):
        pv.fit(program, torch.ones(2, 2, 3), y, objective=summed_out(), epochs=1)


def test_a_label_in_a_later_row_is_refused_with_its_row():
    program = m2(3, (2, 3))
    with pytest.raises(DataError, match=r"y\[1\] = 3"):
        program.model(torch.ones(2, 2, 3), torch.tensor([-1, 3]))


def test_classifier_and_label_prior_must_agree():
    program = m2(3, (2, 3))
    program.classifier = nn.Sequential(mlp((2, 3), 4), CategoricalHead(4))
    with pytest.raises(ConfigError, match=r"over 4 classes(?s:.*)3 classes(?s:.*)Head\(3\)"):
        pv.fit(program, torch.ones(2, 2, 3), epochs=1)
    program.classifier = nn.Sequential(mlp((2, 3), 4), pv.guides.DiagonalNormal(2))
    with pytest.raises(ConfigError, match=r"Independent.*Categorical"):
        pv.fit(program, torch.ones(2, 2, 3), epochs=1)


@pytest.mark.parametrize("alpha", [-1.0, math.nan, "much"])
def test_alpha_is_checked(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        m2(alpha=alpha)


def test_a_certain_label_is_exact_in_float32():
    q = certain(dist.Categorical(logits=torch.zeros(2, 3)), torch.tensor([1, -1]))
    assert q.log_prob(torch.tensor([1, 1])).tolist() == pytest.approx([0.0, -math.log(3)])
    assert (q.probs[0] == torch.tensor([0.0, 1.0, 0.0])).all()


def m2_on_vectors(x: torch.Tensor, num_classes: int, alpha: float) -> SemiSupervisedVAE:
    """M2 on top of the codes of another VAE: a Normal likelihood with one learned scale."""
    size, of_y = x.shape[1], OneHot(num_classes)
    q, p = pv.guides.DiagonalNormal(10), pv.likelihoods.Normal(size, 0.7, learn_scale=True)
    encoder = mlp(size + num_classes, q.num_features, hidden=(128,))
    decoder = mlp(10 + num_classes, p.num_features, hidden=(128,))
    return SemiSupervisedVAE(
        pv.priors.StandardNormal(10),
        Given(Concat(nn.Sequential(encoder, q), of_y=of_y)),
        Given(Concat(nn.Sequential(decoder, p), of_y=of_y)),
        nn.Sequential(mlp(size, num_classes, hidden=(128,)), CategoricalHead(num_classes)),
        pv.priors.Fixed(dist.Categorical, probs=torch.full((num_classes,), 1 / num_classes)),
        alpha=alpha,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Posterior collapse")  # of a part of the 50 dimensions
def test_mnist_with_100_labels(data_folder):
    """≥ 85 % test accuracy, the mean of five draws of 10 labels a class.

    The paper's M1+M2 (its table 1: 96.67 % with 50 000 images and far longer training): a VAE
    without labels first, then M2 on the means of its active latents, for 20 000 images and
    alpha = 0.1 · 20 000 / 100. Measured: mean 90.7 % (92.1, 87.0, 91.8, 91.8, 91.0) in
    4.5 minutes of one CPU core, of which M1 takes about a quarter.
    """
    data = pv.datasets.mnist()
    x, x_test = pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
    m1 = pv.build((28, 28), latent_dim=50, hidden=(300,), seed=0)
    start_at_mean(m1.decoder, x)
    pv.fit(m1, x, epochs=15, batch_size=256, learning_rate=2e-3)
    with torch.no_grad():
        codes, codes_test = m1.encode(x).mean, m1.encode(x_test).mean
    active = codes.var(0) > 0.05
    codes, codes_test = codes[:, active], codes_test[:, active]
    accuracies = []
    for seed in range(5):
        y = some_labels(data.train_labels, 10, seed)
        others = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:19_900]
        rows = torch.cat([torch.nonzero(y >= 0)[:, 0], others[y[others] < 0]])
        torch.manual_seed(seed)
        program = m2_on_vectors(codes, 10, alpha=20.0)
        settings = {"epochs": 40, "batch_size": 400, "learning_rate": 3e-3, "seed": seed}
        pv.fit(program, codes[rows], y[rows], objective=summed_out(), **settings)
        guess = program.classify(codes_test).argmax(-1)
        accuracies.append((guess == data.test_labels).double().mean().item())
    report = f"{[round(a, 4) for a in accuracies]}, mean {sum(accuracies) / 5:.4f}"
    print(f"semi-supervised MNIST, 100 labels, test accuracy: {report}")
    assert sum(accuracies) / 5 >= 0.85, report


# ---- global latents with exact parts: w ~ N(0, τ² I), x_i | z_i, w ~ N(W z_i + w, σ² I)


class SharedMean:
    """The exact posterior q(w) Π q(z_i|x_i, w) and evidence log p(x_1 … x_N)."""

    tau = 0.7

    def __init__(self, x, sd_factor=1.0):
        self.base, self.x, self.sd_factor = LinearGaussian(), x, sd_factor
        self.base.mean = torch.zeros(5)

    def log_evidence(self):
        n, d = self.x.shape
        within = torch.kron(torch.eye(n), self.base.covariance)
        shared = self.tau**2 * torch.kron(torch.ones(n, n), torch.eye(d))
        return dist.MultivariateNormal(torch.zeros(n * d), within + shared).log_prob(
            self.x.flatten()
        )

    def program(self) -> BayesianVAE:
        base, d = self.base, self.x.shape[1]
        precision = torch.linalg.inv(base.covariance)
        covariance = torch.linalg.inv(torch.eye(d) / self.tau**2 + len(self.x) * precision)
        loc = covariance @ precision @ self.x.sum(0)
        root = self.sd_factor * torch.linalg.cholesky(covariance)

        class Encoder(nn.Module):
            def forward(self, x, w):
                return posterior(base, x - w)

        class Decoder(nn.Module):
            def forward(self, z, w):
                return dist.Normal(z @ base.weight.T + w, base.sigma).to_event(1)

        normal = lambda scale: dist.Normal(torch.zeros_like(scale), scale).to_event(1)  # noqa: E731
        return BayesianVAE(
            pv.priors.StandardNormal(2),
            GivenGlobal(Encoder()),
            GivenGlobal(Decoder()),
            pv.priors.Fixed(normal, scale=torch.full((d,), self.tau)),
            pv.priors.Fixed(lambda a, b: dist.MultivariateNormal(a, scale_tril=b), a=loc, b=root),
        )


def test_exact_posteriors_make_every_draw_the_evidence_of_all_data(float64):
    """Σ_i log w_i + log p(w) − log q(w) = log p(x_1 … x_N), each draw."""
    x = LinearGaussian().sample(6)
    truth = SharedMean(x)
    terms = pv.elbo_terms(truth.program(), x, num_samples=9)
    assert terms.latents["w"].std() > 0
    assert torch.allclose(terms.total_elbo, truth.log_evidence().expand(9), atol=1e-10)
    pyros = Trace_ELBO().loss(truth.program().model, truth.program().guide, x)
    assert -pyros == pytest.approx(truth.log_evidence().item(), abs=1e-10)


def test_that_oracle_can_fail(float64):
    """Negative control: q(w) 0.8 times as wide."""
    x = LinearGaussian().sample(6)
    truth = SharedMean(x, sd_factor=0.8)
    terms = pv.elbo_terms(truth.program(), x, num_samples=9)
    assert (terms.total_elbo - truth.log_evidence()).abs().min() > 1e-6


# ---- minibatches


def log_weight(program, x, latents, factor):
    """log p(x, z, w) − log q(z, w|x) at given latents, each datum counted `factor` times."""
    with data_scale(factor):
        model, guide = (
            poutine.trace(poutine.condition(part, latents)).get_trace(x).log_prob_sum()
            for part in (program.model, program.guide)
        )
    return (model - guide).item()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_minibatches_average_to_the_full_data_elbo(size, float64):
    """Over all subsets of this size, with latents substituted: an identity, no Monte Carlo."""
    x = LinearGaussian().sample(5)
    program = ard(latent_dim=2, num_features=5)
    z, w = torch.randn(5, 2), torch.randn(2)
    full = log_weight(program, x, {"z": z, "w": w}, 1.0)
    subsets = [list(s) for s in itertools.combinations(range(5), size)]
    batches = [log_weight(program, x[s], {"z": z[s], "w": w}, 5 / size) for s in subsets]
    assert sum(batches) / len(batches) == pytest.approx(full, abs=1e-10)
    # per batch as well: (N / B) Σ_batch + log p(w) − log q(w)
    p, q = program.global_prior().log_prob(w), program.global_guide().log_prob(w)
    local = (
        program.prior().log_prob(z)
        + program.decoder(z, w).log_prob(x)
        - program.encoder(x).log_prob(z)
    )
    for subset, batch in zip(subsets, batches, strict=True):
        assert batch == pytest.approx((5 / size * local[subset].sum() + p - q).item(), abs=1e-10)
    if size < 5:  # negative control: the scale dropped
        unscaled = [log_weight(program, x[s], {"z": z[s], "w": w}, 1.0) for s in subsets]
        assert sum(unscaled) / len(unscaled) != pytest.approx(full, abs=0.1)


@pytest.mark.parametrize("objective", [TraceELBO, Trace_ELBO, lambda: BetaELBO(1.0)])
def test_every_objective_sees_the_scale_and_the_terms_do_not(objective, float64):
    x = LinearGaussian().sample(4)
    program = ard(latent_dim=2, num_features=5)
    torch.manual_seed(0)
    with data_scale(2.5), data_scale(2.0):
        loss = objective().loss(program.model, program.guide, x)
    torch.manual_seed(0)
    with data_scale(5.0):
        terms = terms_of(draw_traces(program.model, program.guide, x), 4)
    expected = 5 * terms.log_weights.sum() + terms.global_log_prior - terms.global_log_guide
    assert float(loss) == pytest.approx(-expected.item(), abs=1e-10)


def test_the_scale_of_the_analytic_objective(float64):
    x = LinearGaussian().sample(4)
    vae = pv.build(5, likelihood="Normal", seed=0)
    torch.manual_seed(0)
    with data_scale(3.0):
        loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    assert loss == pytest.approx(3 * vae.loss(x).sum().item(), rel=1e-12)


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "2"])
def test_the_factor_is_checked(factor):
    with pytest.raises(ConfigError, match=r"data_scale: factor = .*\n.*num_data / batch_size"):
        data_scale(factor)


# ---- global latents with networks


def ard(latent_dim: int, num_features: int) -> BayesianVAE:
    vae = pv.build(num_features, latent_dim=latent_dim, likelihood="Normal", hidden=(8,), seed=0)
    q_w = pv.priors.LearnedNormal(latent_dim)
    q_w.loc.data.fill_(0.7)  # unlike p(w), so that the global KL is not 0
    return BayesianVAE(
        vae.prior,
        vae.encoder,
        GivenGlobal(Stretched(vae.decoder)),
        pv.priors.StandardNormal(latent_dim),
        q_w,
    )


class BayesianLayer(nn.Module):
    """p(x | z, w) whose last layer has the random weights w (H · F,)."""

    def __init__(self, latent_dim, hidden, head):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(latent_dim, hidden), nn.Tanh())
        self.head, self.shape = head, (hidden, head.num_features)

    def forward(self, z, w):
        weights = w.unflatten(-1, self.shape)  # (H, F), or (S, 1, H, F) under particles
        return self.head((self.body(z)[..., None, :] @ weights).squeeze(-2))


def bayesian(num_features: int) -> BayesianVAE:
    vae = pv.build(num_features, latent_dim=2, hidden=(8,), seed=0)
    layer = BayesianLayer(2, 4, vae.decoder[-1])
    size = 4 * num_features
    return BayesianVAE(
        vae.prior,
        vae.encoder,
        GivenGlobal(layer),
        pv.priors.StandardNormal(size),
        pv.priors.LearnedNormal(size),
    )


@pytest.mark.parametrize("as_stream", [False, True])
def test_held_out_data_are_not_charged_the_kl_of_global_latents(as_stream):
    """It belongs to the training data; charged by the number held out, it would depend on that."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    held_out = torch.utils.data.DataLoader(x[:8], 4) if as_stream else x[:8]
    found = []
    for scale in (1.0, 0.01):  # of p(w)
        program = ard(2, 6)
        normal = lambda scale: dist.Normal(0 * scale, scale).to_event(1)  # noqa: E731
        program.global_prior = pv.priors.Fixed(normal, scale=torch.full((2,), scale))
        settings = {"epochs": 1, "learning_rate": 1e-12, "batch_size": 40}
        found.append(pv.fit(program, x, validation=held_out, **settings)[-1])
    assert found[1].kl > found[0].kl + 100  # nats
    assert found[1].validation_kl == pytest.approx(found[0].validation_kl, rel=1e-5)


@pytest.mark.parametrize("make", [lambda: ard(2, 6), lambda: bayesian(6)], ids=["ARD", "layer"])
def test_hierarchical_programs_fit(make):
    x = (torch.rand(40, 1) < 0.5).float().expand(40, 6).contiguous()
    program = make()
    before = {n: t.clone() for n, t in program.named_parameters()}
    history = pv.fit(program, x, epochs=30, batch_size=10, learning_rate=1e-2)
    assert history[-1].elbo > history[0].elbo
    assert all((t != before[n]).any() for n, t in program.named_parameters())
    terms = pv.elbo_terms(program, x, num_samples=3)
    assert terms.log_weights.shape == (3, 40)
    assert terms.global_log_prior.shape == (3,)
    assert terms.latents["w"].std(0).max() > 0


def test_the_gradient_of_a_batch_is_scaled_to_all_data():
    """Σ_batch counts N / B times, the global latents once: two halves average to the whole.

    Draws are the means, so that no noise differs; one update of plain SGD shows the gradient.
    """
    x, weights = ROWS[:12].double(), []
    for batch_size in (12, 6):
        vae = still_hierarchical()
        settings = {"optimizer": "SGD", "learning_rate": 0.1, "epochs": 1}
        pv.fit(vae, x, batch_size=batch_size, accumulate_batches=12 // batch_size, **settings)
        weights.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.allclose(*weights, rtol=0, atol=1e-12)
    start = torch.cat([p.detach().flatten() for p in still_hierarchical().parameters()])
    assert (weights[0] - start).abs().max() > 1e-3


def test_global_latents_are_vectorized_like_single_draws(float64):
    """Terms at S draws = S times the terms at one, each with its own w."""
    program, x = bayesian(6), (torch.rand(5, 6) < 0.5).double()
    terms = pv.elbo_terms(program, x, num_samples=3)
    for s in range(3):
        z, w = terms.latents["z"][s], terms.latents["w"][s]
        log_likelihood = program.decoder(z, w).log_prob(x)
        assert torch.allclose(terms.log_likelihood[s], log_likelihood, atol=1e-12)
        expected = program.global_prior().log_prob(w)
        assert torch.allclose(terms.global_log_prior[s], expected, atol=1e-12)


def test_covariates_come_before_global_latents():
    class Decoder(nn.Module):
        def forward(self, z, y, w):
            return dist.Normal(z.sum(-1, keepdim=True) + 2 * y + w, 1.0).to_event(1)

    vae = pv.build(3, likelihood="Normal", seed=0)
    program = BayesianVAE(
        vae.prior,
        vae.encoder,
        GivenGlobal(Given(Decoder())),
        pv.priors.StandardNormal(3),
        pv.priors.LearnedNormal(3),
    )
    x, y = torch.randn(5, 3), torch.randn(5, 1)
    trace = poutine.trace(program.model).get_trace(x, y)
    z, w = trace.nodes["z"]["value"], trace.nodes["w"]["value"]
    expected = z.sum(-1, keepdim=True) + 2 * y + w
    assert torch.allclose(trace.nodes["x"]["fn"].base_dist.loc, expected)

"""The report: its page stands alone, and says of any program what applies."""

import json
import math
import shutil
from html.parser import HTMLParser

import pyro.distributions as dist
import pytest
import torch
from helpers import unchanged
from programs import PROGRAMS, data
from report_model import bumps, small_findings, small_model
from torch import nn

import pyrovae as pv
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    DataError,
    VersionMismatchError,
)
from pyrovae.report import graph
from pyrovae.report.card import data_hashes, read_card
from pyrovae.report.encoder import kl_weight
from pyrovae.report.figures import pictures, worst_data
from pyrovae.report.findings import examine
from pyrovae.report.page import of_card, render
from pyrovae.report.trials import Training, continued
from pyrovae.report.verdicts import verdicts

COLUMNS = {"epoch": [1, 2], "elbo": [-9, -8], "reconstruction": [8, 7], "kl": [1, 1]}


class Gaussian(nn.Module):
    """N(a u, scale² I) of its input u."""

    def __init__(self, slope, scale):
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, u):
        return dist.Normal(self.slope * u, self.scale.expand_as(u)).to_event(1)


class TestKlWeight:
    @pytest.mark.parametrize("beta", [0.25, 1.0, 3.0, 10.0])
    def test_is_beta_at_the_optimum_of_a_conjugate_model(self, beta, float64):
        """x ~ N(z, s²): the β-optimal q has 1/σ² = 1 + 1/(β s²) and mean σ² x / (β s²)."""
        s = 0.5
        variance = 1 / (1 + 1 / (beta * s**2))
        encoder = Gaussian(variance / (beta * s**2), variance**0.5)
        vae = pv.VAE(pv.priors.StandardNormal(3), encoder, Gaussian(1.0, s))
        x = torch.randn(2000, 3) * (1 + s**2) ** 0.5
        found = kl_weight(vae, x, num_samples=50)
        assert abs(found.value - beta) < 4 * found.std_error  # 6e-5 by chance
        assert found.std_error < 0.1 * beta

    def test_is_undefined_where_the_posterior_is_the_prior(self):
        vae = pv.VAE(pv.priors.StandardNormal(2), Gaussian(0.0, 1.0), Gaussian(0.0, 1.0))
        assert math.isnan(kl_weight(vae, torch.randn(200, 2)).value)

    @pytest.mark.parametrize(
        ("prior", "guide"),
        [
            ("Bernoulli", "Bernoulli"),
            ("RelaxedBernoulli", "RelaxedBernoulli"),
            ("HypersphericalUniform", "PowerSpherical"),
        ],
    )
    def test_is_undefined_for_codes_that_are_not_of_the_real_line(self, prior, guide):
        vae = pv.build((4,), prior=prior, guide=guide, latent_dim=3, seed=0)
        x = torch.randn(200, 4).sign().clamp(0)
        pv.fit(vae, x, epochs=30, learning_rate=1e-2)
        assert math.isnan(kl_weight(vae, x).value)

    def test_takes_a_flow(self):
        vae = pv.build((4,), guide="FlowGuide", seed=0)
        found = kl_weight(vae, torch.randn(200, 4).sign().clamp(0))
        assert math.isnan(found.value) or found.std_error > 0

    def test_changes_no_generator_and_no_gradient(self):
        vae = pv.build((4,), seed=0)
        with unchanged(vae):
            kl_weight(vae, torch.ones(20, 4))
        assert all(p.grad is None for p in vae.parameters())


def test_continuing_does_not_change_the_model():
    vae, x = pv.build((4,), seed=0), torch.eye(4).repeat(20, 1)
    with unchanged(vae):
        more = continued(vae, x, test=x, training=Training(), num_steps=50)
    assert more.gain.value > 0


def test_continuing_a_collapsed_model_does_not_warn_of_what_a_verdict_says():
    vae, x = pv.build((4,), seed=0), torch.eye(4).repeat(800, 1)
    training = Training(beta=100.0)
    assert continued(vae, x, test=x, training=training, num_steps=500).num_steps >= 500


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def found():
    return small_findings()


CARD = {
    "format": 1,
    "command": "pyrovae fit --data '<b>&'",
    "data": "<script>alert(1)</script>",
    "pixels": "as they are",
    "held_out_is": "its test split",
    "num_samples": 10,
    "seed": 3,
    "best_epoch": 2,
    "seconds": 1.5,
    "settings": {"beta": 1.0, "learning_rate": 1e-3, "batch_size": 64},
    "spec": {"network": "mlp", "hidden": [32], "latent_dim": 2},
    "versions": {"pyrovae": "0.1.0"},
    "data_sha256": {"train": "a" * 64, "valid": None, "test": "b" * 64},
    "model_sha256": "c" * 64,
    "history": [{"validation_elbo": None}] * 2,
}
NUMBER = {"value": -1.25, "std_error": 0.5, "draw_error": 0.1}
PART = {"num_data": 300} | dict.fromkeys(("elbo", "reconstruction", "kl"), NUMBER)
CARD |= {"training": PART, "held_out": PART}


SECTIONS = ("model", "data", "training", "belief", "failures")


class Page(HTMLParser):
    """What a page refers to and whether it is well formed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.images, self.links, self.open = [], [], [], [], []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        self.links += [v for k, v in attrs.items() if k in ("href", "src", "action", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(model, found):
    drawn = pictures(model, found, history=COLUMNS)
    options = {"judged": verdicts(found), "pictures": drawn}
    return render(of_card(CARD, "runs/it's"), model, found=found, **options)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


class TestPage:
    def test_needs_no_network_and_no_script(self, html, page):
        assert page.links
        assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
        assert not {"script", "link", "iframe", "object"} & set(page.tags)
        assert "url(" not in html
        assert "@import" not in html

    def test_is_well_formed_with_unique_ids_that_links_find(self, page):
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)

    def test_every_picture_has_words(self, page):
        assert len(page.images) == 9
        assert all(len(image["alt"]) > 20 for image in page.images)

    def test_what_the_user_wrote_is_text(self, html, page):
        assert "<script>alert(1)" not in html
        assert "VAE on <script>alert(1)</script>" in page.text
        assert "pyrovae fit --data '<b>&'" in page.text

    def test_answers_its_questions(self, page, found):
        for question in ("What the model is", "Can I trust it?", "Where it fails"):
            assert question in page.text
        for verdict in verdicts(found):
            assert verdict.meaning in page.text
        assert "c" * 64 in page.text
        assert "−1.25 ± 0.50" in page.text

    def test_follows_the_colors_and_width_of_the_screen(self, html):
        assert "prefers-color-scheme: dark" in html
        assert 'content="width=device-width, initial-scale=1"' in html

    def test_vectors_have_a_page_without_images(self):
        x = torch.eye(4).repeat(20, 1)
        vae = pv.build((4,), latent_dim=1, prior="GaussianMixture", guide="FlowGuide", seed=0)
        found = examine(vae, x, test=x, num_samples=50, num_steps=2, thorough=False)
        drawn = pictures(vae, found, history=COLUMNS)
        assert drawn["failures"] == []
        options = {"judged": verdicts(found, beta=2), "pictures": drawn}
        card = CARD | {"settings": CARD["settings"] | {"beta": 2}}
        assert "β = 2" in render(of_card(card, "r"), vae, found=found, **options)

    def test_says_whose_evidence_it_is(self, html):
        """Relaxed latents bound the evidence of the relaxed model, not that of the discrete one."""
        assert "of the relaxed model" not in html
        parts = dict.fromkeys(("prior", "guide"), "RelaxedBernoulli")
        vae = pv.build((4,), latent_dim=2, **parts, seed=0)
        x = torch.eye(4).repeat(20, 1)
        found = examine(vae, x, test=x, num_samples=50, num_steps=2, thorough=False)
        options = {"judged": verdicts(found), "pictures": {s: [] for s in SECTIONS}}
        page = Page(render(of_card(CARD, "r"), vae, found=found, **options))
        assert page.text.count("log p(x) of the relaxed model") == 2


def test_the_worst_data_are_those_of_the_lowest_evidence(found):
    rows = worst_data(found, num=3)
    lowest = found.evidence.log_px.sort().values[:3].tolist()
    assert [row["log_px"] for row in rows] == lowest


class TestGraph:
    def test_is_drawn_without_dot(self, model, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        png, drawer = graph.model_graph(model, bumps(4, 0))
        assert (png[:4], drawer) == (b"\x89PNG", "matplotlib")

    @pytest.mark.skipif(not shutil.which("dot"), reason="graphviz's dot is not installed")
    def test_is_pyros_own_with_dot(self, model):
        png, drawer = graph.model_graph(model, bumps(4, 0))
        assert (png[:4], drawer) == (b"\x89PNG", "graphviz")

    def test_names_the_parts(self, model):
        texts = " ".join(text.get_text() for text in graph.draw_graph(model).texts)
        assert all(name in texts for name in ("StandardNormal", "DiagonalNormal", "Bernoulli"))


class TestCard:
    def test_is_read_back(self, tmp_path):
        (tmp_path / "summary.json").write_text(json.dumps(CARD))
        assert read_card(tmp_path) == CARD

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            (None, CheckpointError, "has no summary.json"),
            ("{", CorruptCheckpointError, "cannot be read"),
            ("[]", VersionMismatchError, "format is not an object"),
            ("{}", VersionMismatchError, "format is missing"),
            ('{"format": 9}', VersionMismatchError, "format is 9, but .* reads format 1"),
            ('{"format": 1}', CorruptCheckpointError, "'spec' is NoneType, not dict"),
            (json.dumps(CARD | {"seed": "3"}), CorruptCheckpointError, "'seed' is str, not int"),
            (
                json.dumps(CARD | {"held_out": {"elbo": 3}}),
                CorruptCheckpointError,
                "held_out.elbo is not a number",
            ),
        ],
    )
    def test_is_refused_with_the_reason(self, tmp_path, text, error, message):
        if text is not None:
            (tmp_path / "summary.json").write_text(text)
        with pytest.raises(error, match=message):
            read_card(tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="is not a folder"):
            read_card(tmp_path / "nowhere")

    @pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3).double()])
    def test_a_hash_sees_shape_and_dtype(self, other):
        one, two = (data_hashes(x, None, x)["train"] for x in (torch.zeros(2, 3), other))
        assert one != two


class TestAnyProgram:
    """A page about a program of any kind, from Python."""

    @pytest.mark.parametrize("name", ["global in a plate", "MultimodalVAE"])
    def test_a_page_says_what_applies(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr("pyrovae.report.findings.NUM_DATA", 15)
        monkeypatch.setattr("pyrovae.report.findings.NUM_REFINED", 5)
        monkeypatch.setattr("pyrovae.report.findings.NUM_SIMULATED", 40)
        program, x = PROGRAMS[name].make(), data(name, 40)
        history = pv.fit(program, x, epochs=2, progress=False)
        path = tmp_path / "page.html"
        found = pv.write_report(
            program, x, path, train=x, history=history, num_samples=30, labels=torch.arange(40) % 2
        )
        page = Page(path.read_text())
        assert page.open == []
        assert type(program).__name__ in page.text
        assert "2 epochs on 40 training data" in page.text
        by_name = {verdict.name: verdict for verdict in found}
        assert by_name["over-regularized"].status == "unknown"
        assert by_name["undertrained"].status != "unknown"
        assert by_name["calibration"].number
        for verdict in found:
            assert verdict.meaning in page.text

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "MixtureVAE",
                ["c ~ p(c), z ~ p(z|c)", "Latents of a datum: z; summed out exactly: c"],
            ),
            ("MultimodalVAE", ["encoders a", "decoders b", "observed: a, b"]),
            ("global in a plate", ["Latents of a datum: z; latents that all data share: w"]),
        ],
    )
    def test_a_page_names_latents_and_parts(self, name, expected, tmp_path, monkeypatch):
        path = tmp_path / "page.html"
        monkeypatch.setattr("pyrovae.report.findings.NUM_DATA", 5)
        monkeypatch.setattr("pyrovae.report.findings.NUM_REFINED", 2)
        monkeypatch.setattr("pyrovae.report.findings.NUM_SIMULATED", 40)
        pv.write_report(PROGRAMS[name].make(), data(name, 40), path, num_samples=30)
        text = Page(path.read_text()).text
        assert not [words for words in expected if words not in text]
        assert "Module" not in text

    def test_hidden_cells_may_be_nan(self, tmp_path):
        """Calibration simulates complete data."""
        program, x = PROGRAMS["MultimodalVAE"].make(), data("MultimodalVAE", 40)
        mask = {"b": torch.arange(40) % 2 == 0}
        x["b"] = torch.where(mask["b"][:, None], x["b"], torch.nan)
        found = pv.write_report(program, x, tmp_path / "page.html", mask=mask, num_samples=30)
        by_name = {verdict.name: verdict for verdict in found}
        assert by_name["calibration"].status != "unknown"
        assert by_name["inference gap"].status != "unknown"

    def test_labels_are_one_for_each_datum(self, model, tmp_path):
        path, x = tmp_path / "page.html", bumps(60, 9)
        pv.write_report(model, x, path, num_samples=30, labels=["a", "b"] * 30)
        with pytest.raises(DataError, match=r"labels has shape \(3,\), but x has 60 rows"):
            pv.write_report(model, x, path, overwrite=True, labels=torch.arange(3))

    def test_without_training_data_and_history(self, model, tmp_path):
        path = tmp_path / "page.html"
        found = pv.write_report(model, bumps(60, 9), path, num_samples=30)
        status = {verdict.name: verdict.status for verdict in found}
        assert status["undertrained"] == status["overfitting"] == "unknown"
        assert "the training data were not given" in Page(path.read_text()).text

    @pytest.mark.parametrize(
        ("path", "match"),
        [("page.txt", r"end in \.html"), ("no/page.html", "not a folder"), ("old.html", "exists")],
    )
    def test_a_path_is_checked_first(self, model, path, match, tmp_path):
        (tmp_path / "old.html").write_text("kept")
        with pytest.raises(ConfigError, match=match):
            pv.write_report(model, bumps(60, 9), tmp_path / path)
        assert (tmp_path / "old.html").read_text() == "kept"
        assert len(list(tmp_path.iterdir())) == 1

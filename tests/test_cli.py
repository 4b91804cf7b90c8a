"""The command: what it writes and prints, what it refuses, and that its help is instant."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae import cli
from pyrovae.errors import DivergenceError

PICTURES = ("latent.png", "reconstructions.png", "samples.png", "training.png")
QUICK = ("--epochs", "2", "--hidden", "16")
HEAVY = ("torch", "pyro", "matplotlib", "sklearn", "arviz", "numpy")
HAS_MNIST = Path(os.environ.get("PYROVAE_DATA", "none"), "mnist").is_dir()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def pyrovae(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def fit(*args):
    result = pyrovae("fit", "--out", "run", *QUICK, *args)
    assert result.exit_code == 0, result.output
    return result, json.loads(Path("run", "summary.json").read_text(encoding="utf-8"))


def words(text):
    return " ".join(text.replace("│", " ").split())


class TestImportsNothingHeavy:
    @pytest.mark.parametrize(
        "code",
        [
            "import pyrovae",
            "import pyrovae.cli",
            "from pyrovae.cli import app; app(['--help'], standalone_mode=False)",
            "from pyrovae.cli import app; app(['fit', '--help'], standalone_mode=False)",
        ],
    )
    def test_in_a_fresh_interpreter(self, code):
        code += f"; import sys; print(sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stderr.strip() == "[]", done.stderr

    def test_python_m_pyrovae_is_the_command(self):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "pyrovae", "--help"],
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0
        assert "Usage: pyrovae [OPTIONS] COMMAND" in done.stdout
        assert " torch" not in done.stderr


class TestHelp:
    def test_tells_what_a_vae_is_with_its_equation(self):
        text = words(pyrovae("--help").output)
        assert "A VAE describes a datum x by a few hidden numbers z" in text
        assert "ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)" in text

    def test_of_fit_has_the_loss_the_examples_and_every_option(self):
        text = words(pyrovae("fit", "--help").output)
        assert "loss −E_q[log p(x|z)] + β KL(q(z|x) ‖ p(z))" in text
        assert "pyrovae fit --data mnist --binarize sampled" in text
        for name in cli.Settings.__dataclass_fields__:
            assert f"--{name.replace('_', '-')}" in text

    @pytest.mark.parametrize("command", [(), ("fit",)])
    def test_fits_into_80_columns(self, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        lines = pyrovae(*command, "--help").output.splitlines()
        prose = [
            line for line in lines if line.startswith(" ") and line.strip() not in ("", "Examples:")
        ]
        assert min(len(line.split()) for line in prose) > 1  # a wrapped line leaves one word alone


class TestFit:
    def test_writes_pictures_and_a_summary_and_prints_the_terms(self):
        result, summary = fit()
        assert sorted(p.name for p in Path("run").iterdir()) == sorted(
            [*PICTURES, "model.safetensors", "summary.json"]
        )
        for name in PICTURES:
            assert Path("run", name).read_bytes().startswith(b"\x89PNG")
        text = words(result.stdout)
        for part in (
            "training (N=1437)",
            "held out (N=360)",
            "nats per datum",
            "1 where grey > 0.5",
        ):
            assert part in text
        for key in ("elbo", "reconstruction", "kl"):
            assert f"{summary['held_out'][key]['value']:.2f} ±" in text
        assert "run/samples.png" in text.replace("\\", "/")

    def test_the_summary_holds_what_is_needed_to_repeat_the_run(self):
        _, summary = fit("--seed", 5, "--latent-dim", 3)
        assert summary["settings"] == {
            "data": "digits",
            "binarize": None,
            "latent_dim": 3,
            "hidden": [16],
            "prior": "StandardNormal",
            "guide": "DiagonalNormal",
            "likelihood": "Bernoulli",
            "network": "mlp",
            "epochs": 2,
            "batch_size": 64,
            "learning_rate": 0.001,
            "beta": 1.0,
            "seed": 5,
            "out": "run",
        }
        assert summary["seed"] == 5
        assert summary["versions"]["pyrovae"] == pv.__version__
        assert set(summary["versions"]) == {"pyrovae", "torch", "pyro-ppl"}
        assert [epoch["epoch"] for epoch in summary["history"]] == [1, 2]
        assert summary["unit"].startswith("nats per datum")

    def test_the_numbers_are_those_of_the_library(self):
        _, summary = fit()
        data = pv.datasets.digits()
        x, x_test = pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
        vae = pv.build((8, 8), latent_dim=2, hidden=(16,), data=x, seed=0)
        history = pv.fit(vae, x, epochs=2, batch_size=64, seed=0)
        terms = pv.elbo_terms(vae, x_test, num_samples=cli.NUM_SAMPLES, seed=0)
        elbo = terms.log_weights.mean(0).double()
        assert summary["history"][1]["elbo"] == history[1].elbo
        assert summary["held_out"]["elbo"]["value"] == pytest.approx(elbo.mean().item(), rel=1e-6)
        assert summary["held_out"]["elbo"]["std_error"] == pytest.approx(
            elbo.std().item() / 360**0.5, rel=1e-5
        )

    def test_the_elbo_is_the_sum_of_its_terms(self):
        _, summary = fit("--beta", 3)
        for part in (summary["training"], summary["held_out"]):
            total = part["reconstruction"]["value"] + part["kl"]["value"]
            assert part["elbo"]["value"] == pytest.approx(-total, rel=1e-6)

    def test_beta_changes_training_and_the_report_says_so(self):
        result, heavy = fit("--beta", 20)
        assert "trained with β = 20; the ELBO above is that of β = 1" in words(result.stdout)
        Path("run").rename("heavy")
        _, light = fit("--beta", 0)
        assert heavy["training"]["kl"]["value"] < light["training"]["kl"]["value"]

    def test_the_same_seed_gives_the_same_numbers(self):
        _, one = fit("--binarize", "sampled")
        Path("run").rename("one")
        _, two = fit("--binarize", "sampled")
        assert one["training"] == two["training"]
        assert one["held_out"] == two["held_out"]

    def test_the_default_folder_is_named_after_data_and_time(self):
        assert pyrovae("fit", *QUICK).exit_code == 0
        (folder,) = Path("runs").iterdir()
        assert folder.name.startswith("digits-20")

    def test_an_empty_folder_is_taken(self):
        Path("run").mkdir()
        fit()

    def test_no_generator_is_left_moved(self):
        state = torch.get_rng_state()
        fit("--binarize", "sampled")
        assert torch.equal(torch.get_rng_state(), state)

    def test_chunks_of_rows_give_the_same_estimate(self, monkeypatch):
        vae = pv.build((8, 8), latent_dim=2, hidden=(16,), seed=0)
        x = torch.ones(30, 8, 8)
        whole = cli.estimate(vae, x, 2**64 - 1)
        monkeypatch.setattr(cli, "NUM_SAMPLES", 2**17)  # one row a chunk
        parts = cli.estimate(vae, x[:2], 2**64 - 1)
        # the rows are equal, so both estimate one number; the error of `parts` is far smaller
        error = whole["elbo"]["std_error"]
        assert abs(parts["elbo"]["value"] - whole["elbo"]["value"]) < 4 * error


class TestFitOnFiles:
    def test_float_images_lose_a_fifth_to_the_held_out_part(self):
        np.save("faces.npy", np.random.default_rng(0).uniform(size=(50, 6, 5)))
        result, summary = fit("--data", "faces.npy")
        assert (summary["training"]["num_data"], summary["held_out"]["num_data"]) == (40, 10)
        assert summary["data"] == "faces"
        assert "a fifth of the rows" in words(result.stdout)

    def test_bytes_are_divided_by_255_and_the_report_says_so(self):
        images = np.random.default_rng(0).integers(0, 256, (50, 1, 6, 5), dtype=np.uint8)
        np.savez("faces.npz", images=images)
        result, _ = fit("--data", "faces.npz")
        assert "grey = byte / 255" in result.stdout
        assert Path("run", "samples.png").exists()

    def test_gzipped_idx(self):
        images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + np.array([20, 4, 4], dtype=">i4").tobytes()
        Path("a-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        fit("--data", "a-idx3-ubyte.gz")

    def test_vectors_have_no_image_pictures(self):
        np.save("bits.npy", np.random.default_rng(0).integers(0, 2, (20, 7)))
        result, _ = fit("--data", "bits.npy", "--binarize", "none")
        assert sorted(p.name for p in Path("run").glob("*.png")) == ["latent.png", "training.png"]
        assert "samples.png" not in result.stdout


class TestRefuses:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--data", "minst"), "Data sets: digits, mnist, fashion_mnist"),
            (("--data", "nowhere.npy"), "nowhere.npy"),
            (("--data", "few.npy"), "10 or more"),
            (("--data", "wide.npy"), "expected grey values in [0, 1]"),
            (("--data", "text.csv"), "expected a name that ends in .npy"),
            (("--binarize", "none"), "Write --binarize threshold, or sampled"),
            (("--binarize", "otsu"), "'threshold', 'sampled', 'none'"),
            (("--latent-dim", "0"), "--latent-dim"),
            (("--latent-dim", "two"), "--latent-dim"),
            (("--hidden", "200,x"), "such as 200 or 300,300"),
            (("--hidden", ""), "such as 200 or 300,300"),
            (("--epochs", "0"), "--epochs"),
            (("--batch-size", "0"), "--batch-size"),
            (("--learning-rate", "0"), "learning_rate = 0.0"),
            (("--learning-rate", "nan"), "learning_rate = nan"),
            (("--beta", "-1"), "beta = -1.0"),
            (("--beta", "nan"), "beta = nan"),
            (("--seed", "-1"), "--seed"),
            (("--seed", str(2**64)), "below 2⁶⁴"),
            (("--out", "full"), "a run overwrites nothing"),
            (("--out", "text.csv"), "a run overwrites nothing"),
            (("--depth", "3"), "No such option"),
        ],
    )
    def test_with_a_message_exit_code_2_and_no_file(self, options, message, tmp_path):
        Path("full").mkdir()
        Path("full", "mine.txt").write_text("mine")
        Path("text.csv").write_text("1,2")
        np.save("few.npy", np.zeros((3, 4, 4)))
        np.save("wide.npy", np.full((20, 4, 4), 3.0))
        before = sorted(tmp_path.rglob("*"))
        result = pyrovae("fit", "--epochs", "1", *options)
        assert result.exit_code == 2, result.output
        assert message in words(result.stderr)
        assert "Traceback" not in result.output
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        Path("file").write_text("")
        result = pyrovae("fit", *QUICK, "--out", "file/run")
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (DivergenceError("non-finite loss at step 3"), 1, "Error: non-finite loss at step 3"),
            (KeyboardInterrupt(), 130, "Interrupted."),
        ],
    )
    def test_a_run_that_breaks_off_leaves_no_folder(
        self, error, code, message, monkeypatch, tmp_path
    ):
        def broken(*args, **kwargs):
            raise error

        monkeypatch.setattr(pv, "fit", broken)
        result = pyrovae("fit", "--out", "deep/er/run")
        assert result.exit_code == code
        assert result.stderr.strip() == message
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not HAS_MNIST, reason="PYROVAE_DATA names no folder with mnist")
class TestOnMnist:
    def test_fit_scores_all_held_out_images(self, monkeypatch):
        data = pv.datasets.mnist()
        small = data._replace(
            train=data.train[:500], test=data.test[:1500], test_labels=data.test_labels[:1500]
        )
        monkeypatch.setattr(pv.datasets, "mnist", lambda: small)
        _, summary = fit("--data", "mnist", "--binarize", "sampled")
        assert summary["held_out"]["num_data"] == 1500


def test_validation_data_choose_the_weights(monkeypatch):
    x = torch.bernoulli(torch.full((60, 6, 6), 0.3), generator=torch.Generator().manual_seed(0))
    data = pv.datasets.Data(x[:30], x[30:45], x[45:], name="binarized_mnist")
    monkeypatch.setattr(pv.datasets, "binarized_mnist", lambda: data)
    result, summary = fit("--data", "binarized_mnist")
    assert summary["history"][0]["validation_elbo"] is not None
    assert "best validation ELBO" in result.stdout
    assert summary["pixels"].startswith("taken as they are")


class TestParts:
    def test_every_part_has_an_option_and_the_model_is_saved(self):
        fit("--prior", "GaussianMixture", "--guide", "FlowGuide", "--likelihood", "Normal")
        vae = pv.load("run/model.safetensors")
        assert type(vae.prior).__name__ == "GaussianMixture"
        assert type(vae.encoder[-1]).__name__ == "FlowGuide"
        assert vae.loss(pv.datasets.digits().test).isfinite().all()

    def test_a_wrong_name_suggests_the_nearest(self):
        result = pyrovae("fit", "--out", "run", "--prior", "Vampprior")
        assert result.exit_code == 2
        assert "Did you mean 'VampPrior'?" in result.stderr
        assert not Path("run").exists()

"""The command: what it writes and prints, what it refuses, and that its help is instant."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray
from helpers import unchanged
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae import cli
from pyrovae.cli import numbers, verify
from pyrovae.errors import DivergenceError

PICTURES = ("latent.png", "reconstructions.png", "samples.png", "training.png")
LEVELS = "DiscretizedLogistic:num_levels=17"
QUICK = ("--epochs", "2", "--hidden", "16")
HEAVY = ("torch", "pyro", "matplotlib", "sklearn", "arviz", "numpy")
COMMANDS = ("fit", "evaluate", "verify", "sample", "encode", "impute", "compare", "report")
HAS_MNIST = Path(os.environ.get("PYROVAE_DATA", "none"), "mnist").is_dir()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def undraw(monkeypatch):
    """Make figures, but do not render them, where the pictures are not what is tested."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())


@pytest.fixture
def undrawn(monkeypatch):
    undraw(monkeypatch)


def pyrovae(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def fit(*args):
    result = pyrovae("fit", "--out", "run", *QUICK, *args)
    assert result.exit_code == 0, result.output
    return result, json.loads(Path("run", "summary.json").read_text(encoding="utf-8"))


def run_of(folder, *args):
    result = pyrovae("fit", *QUICK, *args, "--out", folder)
    assert result.exit_code == 0, result.output
    return json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))


def words(text):
    return " ".join(text.replace("│", " ").split())


IMPOSSIBLE = ["", "a\nb", "a\0b", "a\x1bb", "ü" * 10**6, "a" * 251 + "/b"]
NAMING = {
    "fit --out": ("fit", "--out"),
    "fit --resume": ("fit", "--resume"),
    "fit --data": ("fit", "--data"),
    "sample RUN": ("sample", "--out", "x.npz"),
    "sample --out": ("sample", "run", "--out"),
    "encode --out": ("encode", "run", "--out"),
    "impute FILE": ("impute", "run", "--out", "x.npz"),
    "evaluate RUN": ("evaluate",),
    "evaluate --data": ("evaluate", "run", "--data"),
    "compare RUN": ("compare", "run"),
    "report --out": ("report", "run", "--out"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
@pytest.mark.parametrize("command", NAMING.values(), ids=NAMING)
def test_a_name_that_no_file_can_have_is_a_usage_error_and_nothing_is_written(command, name):
    result = pyrovae(*command, name)
    assert result.exit_code == 2
    assert "path = " in result.output
    assert len(result.output) < 1500
    assert not list(Path().iterdir())


class TestImportsNothingHeavy:
    @pytest.mark.parametrize(
        "code",
        [
            "import pyrovae",
            "import pyrovae.cli",
            "from pyrovae.cli import app; app(['--help'], standalone_mode=False)",
            "from pyrovae.cli import app; app(['fit', '--help'], standalone_mode=False)",
            "from pyrovae.cli import app; app(['report', '--help'], standalone_mode=False)",
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


def test_a_missing_file_is_named():
    result = pyrovae("fit", "--data", "nofile.npy")
    assert result.exit_code == 2
    assert result.stderr == "Error: nofile.npy: No such file or directory.\n"


class TestHelp:
    def test_explains_a_vae_with_its_equation(self):
        text = words(pyrovae("--help").output)
        assert "A VAE describes a datum x by a few hidden numbers z" in text
        assert "ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)" in text

    def test_of_fit_has_the_loss_the_examples_and_every_option(self):
        text = words(pyrovae("fit", "--help").output)
        assert "loss −E_q[log p(x|z)] + β KL(q(z|x) ‖ p(z))" in text
        assert "pyrovae fit --data mnist --binarize sampled" in text
        for name in cli.fit.Settings.__dataclass_fields__:
            assert f"--{name.replace('_', '-')}" in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_every_command_has_an_example(self, command):
        text = words(pyrovae(command, "--help").output)
        assert f"pyrovae {command} runs/" in text or command == "fit"
        assert "Example" in text

    @pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
    def test_fits_into_80_columns(self, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        lines = pyrovae(*command, "--help").output.splitlines()
        prose = [
            line
            for line in lines
            if line.startswith(" ") and line.strip() not in ("", "Examples:", "Example:")
        ]
        assert min(len(line.split()) for line in prose) > 1  # a wrapped line leaves one word alone


class TestFit:
    def test_writes_pictures_and_a_summary_and_prints_the_terms(self):
        result, summary = fit()
        steps = [path.name for path in Path("run").glob("step-*")]
        files = ["model.safetensors", "summary.json", "settings.json", "history.csv", "lock"]
        assert sorted(p.name for p in Path("run").iterdir()) == sorted([*PICTURES, *files, *steps])
        assert steps == ["step-00000046"]  # 2 epochs of 23 batches
        for name in PICTURES:
            assert Path("run", name).read_bytes().startswith(b"\x89PNG")
        text = words(result.stdout)
        for part in (
            "training (N=1437)",
            "held out (N=360)",
            "nats per datum",
            "1 where gray > 0.5",
        ):
            assert part in text
        for key in ("elbo", "reconstruction", "kl"):
            assert f"{summary['held_out'][key]['value']:.2f} ±" in text
        assert "run/samples.png" in text.replace("\\", "/")

    def test_the_summary_holds_what_is_needed_to_repeat_the_run(self, undrawn):
        _, summary = fit("--seed", 5, "--latent-dim", 3)
        assert summary["settings"] == {
            "data": "digits",
            "binarize": None,
            "latent_dim": 3,
            "hidden": [16],
            "key": None,
            "prior": "StandardNormal",
            "guide": "DiagonalNormal",
            "likelihood": "Bernoulli",
            "network": "mlp",
            "epochs": 2,
            "batch_size": 64,
            "learning_rate": 0.001,
            "beta": 1.0,
            "seed": 5,
            "compile": "auto",
            "precision": "float32",
            "device": None,
            "out": "run",
        }
        assert summary["seed"] == 5
        assert summary["versions"]["pyrovae"] == pv.__version__
        assert set(summary["versions"]) == {"pyrovae", "torch", "pyro-ppl", "numpy", "python"}
        assert [epoch["epoch"] for epoch in summary["history"]] == [1, 2]
        assert summary["unit"].startswith("nats per datum")

    def test_the_numbers_are_those_of_the_library(self, undrawn):
        _, summary = fit()
        data = pv.datasets.digits()
        x, x_test = pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
        vae = pv.build((8, 8), latent_dim=2, hidden=(16,), data=x, seed=0)
        history = pv.fit(vae, x, epochs=2, batch_size=64, seed=0)
        terms = pv.elbo_terms(vae, x_test, num_samples=numbers.NUM_SAMPLES, seed=0)
        elbo = terms.log_weights.mean(0).double()
        assert summary["history"][1]["elbo"] == history[1].elbo
        assert summary["held_out"]["elbo"]["value"] == pytest.approx(elbo.mean().item(), rel=1e-6)
        assert summary["held_out"]["elbo"]["std_error"] == pytest.approx(
            elbo.std().item() / 360**0.5, rel=1e-5
        )

    def test_beta_changes_training_and_the_report_says_so(self, undrawn):
        result, heavy = fit("--beta", 20)
        assert "trained with β = 20; the ELBO above is that of β = 1" in words(result.stdout)
        Path("run").rename("heavy")
        _, light = fit("--beta", 0)
        assert heavy["training"]["kl"]["value"] < light["training"]["kl"]["value"]
        for part in (heavy["training"], heavy["held_out"]):  # the ELBO is the sum of its terms
            total = part["reconstruction"]["value"] + part["kl"]["value"]
            assert part["elbo"]["value"] == pytest.approx(-total, rel=1e-6)

    def test_the_same_seed_gives_the_same_numbers_and_no_generator_is_left_moved(self, monkeypatch):
        with unchanged():
            _, one = fit("--binarize", "sampled")
        Path("run").rename("one")
        undraw(monkeypatch)
        _, two = fit("--binarize", "sampled")
        assert one["training"] == two["training"]
        assert one["held_out"] == two["held_out"]

    def test_the_default_folder_is_named_after_data_and_time(self, undrawn):
        assert pyrovae("fit", *QUICK).exit_code == 0
        (folder,) = Path("runs").iterdir()
        assert folder.name.startswith("digits-20")

    def test_an_empty_folder_is_accepted(self, undrawn):
        Path("run").mkdir()
        fit()

    def test_chunks_of_rows_give_the_same_estimate(self):
        vae = pv.build((8, 8), latent_dim=2, hidden=(16,), seed=0)
        x = torch.ones(30, 8, 8)
        whole = numbers.estimate(vae, x, 2**64 - 1)
        one_row_a_chunk = 2**17
        parts = numbers.estimate(vae, x[:2], 2**64 - 1, num_samples=one_row_a_chunk)
        # the rows are equal, so both estimate one number; the error of `parts` is far smaller
        error = whole["elbo"]["std_error"]
        assert abs(parts["elbo"]["value"] - whole["elbo"]["value"]) < 4 * error


class TestFitOnFiles:
    def test_a_fifth_of_float_images_is_held_out(self, undrawn):
        np.save("faces.npy", np.random.default_rng(0).uniform(size=(50, 6, 5)))
        result, summary = fit("--data", "faces.npy")
        assert (summary["training"]["num_data"], summary["held_out"]["num_data"]) == (40, 10)
        assert summary["data"] == "faces"
        assert "a fifth of the rows" in words(result.stdout)

    def test_bytes_are_divided_by_255_and_the_report_says_so(self):
        images = np.random.default_rng(0).integers(0, 256, (50, 1, 6, 5), dtype=np.uint8)
        np.savez("faces.npz", images=images)
        result, _ = fit("--data", "faces.npz")
        assert "gray = byte / 255" in result.stdout
        assert Path("run", "samples.png").exists()

    def test_gzipped_idx(self, undrawn):
        images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + np.array([20, 4, 4], dtype=">i4").tobytes()
        Path("a-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        fit("--data", "a-idx3-ubyte.gz")

    def test_the_format_of_a_file_does_not_change_the_numbers(self, undrawn):
        x = np.random.default_rng(0).integers(0, 2, (20, 7)).astype("float32")
        np.save("x.npy", x)
        scipy.sparse.save_npz("sparse.npz", scipy.sparse.csr_array(x))
        frame = pd.DataFrame(x)
        frame.columns = list("abcdefg")
        frame.to_csv("x.csv", index=False)
        frame.to_parquet("x.parquet")
        numbers, codes = [], []
        for name in ("x.npy", "sparse.npz", "x.csv", "x.parquet"):
            assert pyrovae("fit", "--out", f"run-{name}", *QUICK, "--data", name).exit_code == 0
            card = json.loads(Path(f"run-{name}", "summary.json").read_text(encoding="utf-8"))
            numbers.append((card["held_out"], card["data_sha256"]))
            assert pyrovae("encode", "run-x.npy", name, "--out", f"{name}.npz").exit_code == 0
            codes.append(arrays(f"{name}.npz")["mean"].tolist())
        assert all(n == numbers[0] for n in numbers)
        assert all(code == codes[0] for code in codes)

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
            (("--data", "few.npy"), "with N ≥ 10"),
            (("--data", "wide.npy"), "expected gray values in [0, 1]"),
            (("--data", "text.txt"), "expected a name that ends in .npy"),
            (("--binarize", "none"), "Write --binarize threshold or sampled"),
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
            (("--out", "full"), "runs overwrite nothing"),
            (("--out", "text.txt"), "runs overwrite nothing"),
            (("--depth", "3"), "No such option"),
        ],
    )
    def test_with_a_message_exit_code_2_and_no_file(self, options, message, tmp_path):
        Path("full").mkdir()
        Path("full", "mine.txt").write_text("mine")
        Path("text.txt").write_text("1,2")
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
    def test_a_run_that_fails_leaves_no_folder(self, error, code, message, monkeypatch, tmp_path):
        def broken(*args, **kwargs):
            raise error

        monkeypatch.setattr(pv, "fit", broken)
        result = pyrovae("fit", "--out", "deep/er/run")
        assert result.exit_code == code
        assert result.stderr.strip() == message
        assert list(tmp_path.iterdir()) == []


class TestResume:
    def test_ctrl_c_leaves_a_usable_run_that_resumes_bit_for_bit(self, undrawn, monkeypatch):
        options = ("--epochs", "4", "--hidden", "16")
        assert pyrovae("fit", "--out", "whole", *options).exit_code == 0
        real = pv.fit

        def interrupted(*args, **kwargs):
            def at_epoch_2(program, record):
                if record.epoch == 2:
                    os.kill(os.getpid(), signal.SIGINT)

            return real(*args, **kwargs, callbacks=[at_epoch_2])

        monkeypatch.setattr(pv, "fit", interrupted)
        result = pyrovae("fit", "--out", "run", *options)
        assert result.exit_code == 130
        assert "Interrupted. Resume with: pyrovae fit --resume run" in words(result.stderr)
        assert len(json.loads(Path("run/summary.json").read_text())["history"]) == 2
        assert pv.load("run/model.safetensors").sample(2, seed=0).shape == (2, 8, 8)
        monkeypatch.setattr(pv, "fit", real)
        assert pyrovae("fit", "--resume", "run").exit_code == 0
        cards = [json.loads(Path(d, "summary.json").read_text()) for d in ("whole", "run")]
        assert cards[0]["model_sha256"] == cards[1]["model_sha256"]
        assert [e["elbo"] for e in cards[0]["history"]] == [e["elbo"] for e in cards[1]["history"]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--resume", "nowhere"), "nowhere has no settings.json"),
            (("--resume", "nowhere", "--epochs", "3"), "nowhere has no settings.json"),
            (("--resume", "nowhere", "--seed", "3"), "but --seed was also given"),
            (("--resume", "broken"), "is damaged"),
        ],
    )
    def test_a_run_that_cannot_be_resumed_is_refused(self, options, message):
        Path("broken").mkdir()
        Path("broken/settings.json").write_text('{"hidden": 3}')
        result = pyrovae("fit", *options)
        assert result.exit_code == 2
        assert message in words(result.stderr)

    def test_a_killed_run_is_looked_at_as_it_is(self, undrawn):
        x = torch.bernoulli(torch.full((30, 4), 0.3))
        np.save("x.npy", x.numpy())
        run_of("run", "--data", "x.npy")
        for name in ("summary.json", "model.safetensors"):  # as if killed before its end
            Path("run", name).unlink()
        result = pyrovae("evaluate", "run")
        assert result.exit_code == 2
        assert "pyrovae fit --resume run --epochs 1" in words(result.stderr)
        assert pyrovae("fit", "--resume", "run", "--epochs", "1").exit_code == 0
        assert pyrovae("evaluate", "run").exit_code == 0
        assert len(json.loads(Path("run/summary.json").read_text())["history"]) == 2

    def test_epochs_extend_a_run_or_end_it_early(self, undrawn):
        run_of("whole", "--epochs", "4")
        run_of("run", "--epochs", "2")
        for epochs, num in ((4, 4), (1, 4)):
            assert pyrovae("fit", "--resume", "run", "--epochs", epochs).exit_code == 0
            cards = [json.loads(Path(d, "summary.json").read_text()) for d in ("whole", "run")]
            assert len(cards[1]["history"]) == num
            assert cards[0]["model_sha256"] == cards[1]["model_sha256"]
            assert json.loads(Path("run/settings.json").read_text())["epochs"] == epochs


class TestSettings:
    def test_options_of_parts_and_files_of_settings_make_the_same_run(self, undrawn):
        parts = ("--prior", "GaussianMixture:num_components=3", "--likelihood", LEVELS)
        cards = [run_of("line", *parts, "--seed", "3", "--latent-dim", "3")]
        Path("run.toml").write_text(
            'seed = 9\nlatent-dim = 3\nhidden = [16]\nprior = {name = "GaussianMixture", '
            f'num_components = 3}}\nlikelihood = "{LEVELS}"\n'
        )
        cards.append(run_of("file", "--settings", "run.toml", "--seed", "3"))
        assert cards[0]["spec"] == cards[1]["spec"]
        assert cards[0]["model_sha256"] == cards[1]["model_sha256"]
        again = run_of("again", "--settings", "line/settings.json")
        assert again["model_sha256"] == cards[0]["model_sha256"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("latent_dims = 3", "Did you mean 'latent_dim'?"),
            ("latent_dim = 'many'", "latent_dim = 'many'"),
            ("latent_dim = 0", "latent_dim = 0"),
            ("latent_dim = ", "is not TOML"),
            ("precision = 'int4'", "precision = 'int4'"),
        ],
    )
    def test_a_wrong_file_is_refused(self, text, message):
        Path("run.toml").write_text(text)
        result = pyrovae("fit", "--settings", "run.toml")
        assert result.exit_code == 2
        assert message in words(result.stderr)

    def test_an_option_of_a_part_needs_a_value(self):
        result = pyrovae("fit", "--prior", "GaussianMixture:num_components")
        assert result.exit_code == 2
        assert "is not an option of the form key=value" in words(result.stderr)

    def test_conv_has_its_own_widths(self, undrawn):
        result = pyrovae("fit", "--network", "conv", "--epochs", "1", "--out", "run")
        assert result.exit_code == 0, result.output
        card = json.loads(Path("run/summary.json").read_text())
        assert card["spec"]["hidden"] == [32, 64, 64]

    def test_two_arrays_of_a_file_are_training_and_held_out_data(self, undrawn):
        x = np.random.default_rng(0).integers(0, 256, (60, 3, 6, 5)).astype("u1")
        np.savez("colors.npz", train=x[:40], test=x[40:], other=np.zeros(3))
        options = ("--data", "colors.npz", "--likelihood", "DiscretizedLogisticMixture")
        _, summary = fit(*options, "--key", "train,test", "--network", "conv")
        sizes = summary["training"]["num_data"], summary["held_out"]["num_data"]
        assert sizes == (40, 20)
        assert "byte / 255" in summary["held_out_is"]
        for key, message in (("nothing", "expected a key 'nothing'"), ("train,other", "N ≥ 10")):
            result = pyrovae("fit", *options, "--key", key)
            assert result.exit_code == 2
            assert message in words(result.stderr)

    def test_bytes_are_counts_for_likelihoods_of_counts(self, undrawn):
        x = np.random.default_rng(0).integers(0, 9, (50, 4)).astype("u1")
        np.save("x.npy", x)
        for likelihood in ("Categorical:num_categories=9", "NegativeBinomial", "Poisson"):
            card = run_of(likelihood, "--data", "x.npy", "--likelihood", likelihood)
            assert "byte / 255" not in card["held_out_is"]


@pytest.mark.skipif(not HAS_MNIST, reason="PYROVAE_DATA names no folder with mnist")
class TestOnMnist:
    def test_fit_scores_all_held_out_images(self, undrawn, monkeypatch):
        data = pv.datasets.mnist()
        small = data._replace(
            train=data.train[:500], test=data.test[:1500], test_labels=data.test_labels[:1500]
        )
        monkeypatch.setattr(pv.datasets, "mnist", lambda: small)
        _, summary = fit("--data", "mnist", "--binarize", "sampled")
        assert summary["held_out"]["num_data"] == 1500


def test_validation_data_choose_the_weights(undrawn, monkeypatch):
    x = torch.bernoulli(torch.full((60, 6, 6), 0.3), generator=torch.Generator().manual_seed(0))
    data = pv.datasets.Data(x[:30], x[30:45], x[45:], name="binarized_mnist")
    monkeypatch.setattr(pv.datasets, "binarized_mnist", lambda: data)
    result, summary = fit("--data", "binarized_mnist")
    assert summary["history"][0]["validation_elbo"] is not None
    assert "best validation ELBO" in result.stdout
    assert summary["pixels"].startswith("unchanged")


class TestParts:
    def test_every_part_has_an_option_and_the_model_is_saved(self, undrawn):
        fit("--prior", "GaussianMixture", "--guide", "FlowGuide", "--likelihood", "Normal")
        vae = pv.load("run/model.safetensors")
        assert type(vae.prior).__name__ == "GaussianMixture"
        assert type(vae.encoder[-1]).__name__ == "FlowGuide"
        assert vae.loss(pv.datasets.digits().test).isfinite().all()

    def test_the_bound_of_relaxed_latents_is_called_that_of_the_relaxed_model(self, undrawn):
        part = "RelaxedBernoulli"
        result, summary = fit("--prior", part, "--guide", part)
        assert summary["bound_on"] == "log p(x) of the relaxed model"
        assert "ELBO of the relaxed model (higher is better)" in words(result.stdout)
        scores = words(pyrovae("evaluate", "run", "--num-samples", 21, "--num-data", 20).stdout)
        assert "ELBO of the relaxed model (higher is better)" in scores
        assert "evidence, log p(x) of the relaxed model" in scores
        shutil.copytree("run", "again")
        assert "relaxed" in words(pyrovae("compare", "run", "again", "--num-samples", 21).stdout)

    def test_a_wrong_name_suggests_the_nearest(self):
        result = pyrovae("fit", "--out", "run", "--prior", "Vampprior")
        assert result.exit_code == 2
        assert "Did you mean 'VampPrior'?" in result.stderr
        assert not Path("run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on digits that differ in their prior, and one on other data."""
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "x.npy", np.random.default_rng(0).uniform(size=(50, 8, 8)))
    options = {
        "normal": (),
        "mixture": ("--prior", "GaussianMixture"),
        "other": ("--data", folder / "x.npy"),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        undraw(monkeypatch)
        for name, more in options.items():
            args = ("--out", folder / name, "--epochs", "4", "--hidden", "16", *more)
            result = pyrovae("fit", *args)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """Copies of the runs that a test may change, in its working folder."""
    for name in ("normal", "mixture", "other"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def fails(*args, code=2):
    result = pyrovae(*args)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return words(result.stderr)


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def edit(path, change):
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


class TestCard:
    def test_holds_everything_needed_to_check_the_run(self, runs):
        card = json.loads((runs / "normal" / "summary.json").read_text(encoding="utf-8"))
        model = (runs / "normal" / "model.safetensors").read_bytes()
        assert card["format"] == 1
        assert card["model_sha256"] == hashlib.sha256(model).hexdigest()
        assert card["data_sha256"]["valid"] is None
        assert card["spec"]["latent_dim"] == 2
        for part in ("training", "held_out"):
            for number in ("elbo", "reconstruction", "kl"):
                assert card[part][number]["draw_error"] > 0

    def test_the_error_over_draws_is_the_spread_of_repetitions(self):
        vae, x = pv.build((4,), latent_dim=2, seed=0), torch.eye(4).repeat(5, 1)
        repeated = [numbers.estimate(vae, x, 100 * seed)["kl"] for seed in range(100)]
        spread = np.std([number["value"] for number in repeated], ddof=1)
        claimed = np.mean([number["draw_error"] ** 2 for number in repeated]) ** 0.5
        assert spread == pytest.approx(claimed, rel=4 / 200**0.5)  # 4 standard errors of a spread


class TestEvaluate:
    def test_json_has_the_numbers_of_the_library(self, runs):
        result = pyrovae("evaluate", "normal", "--num-samples", 50, "--json")
        found = json.loads(result.stdout)
        vae, x = pv.load("normal/model.safetensors"), pv.datasets.digits().test
        evidence = pv.log_evidence(vae, pv.datasets.binarize(x), method="auto")
        assert found["log_px"]["value"] == pytest.approx(evidence.log_px.mean().item())
        assert found["log_px"]["methods"] == {"grid": 360}
        assert found["log_px"]["share_lower_bounds"] == 0.0
        assert found["elbo"]["value"] < found["log_px"]["value"]
        assert found["active_units"]["of"] == 2
        assert 0 <= found["share_above_pareto_k"]["value"] <= 1

    def test_table_names_estimator_and_errors(self, runs):
        text = words(pyrovae("evaluate", "normal", "--num-samples", 50, "--num-data", 40).stdout)
        for part in (
            "held out (N=40)",
            "evidence, log p(x)",
            "by grid (40)",
            "active units",
            "k̂ >",
        ):
            assert part in text


class TestVerify:
    def test_a_true_card_holds_with_other_draws(self, runs):
        result = pyrovae("verify", "normal")
        assert result.exit_code == 0, result.output
        assert "All 9 checks pass." in words(result.stdout)

    def test_the_draws_differ_from_the_runs_own(self, runs):
        found = json.loads(pyrovae("verify", "normal", "--json").stdout)
        distances = [c["distance"] for c in found["checks"] if c["distance"] is not None]
        assert len(distances) == 6
        assert min(distances) > 0
        assert found["is_fine"]

    def test_a_number_that_is_too_good_fails(self, runs):
        def better(card):
            number = card["held_out"]["elbo"]
            number["value"] += 6 * number["draw_error"]  # 6/√2 = 4.2 errors of the difference

        edit(runs / "normal" / "summary.json", better)
        result = pyrovae("verify", "normal", "--seed", 12345)
        assert result.exit_code == 1
        assert "1 of 9 checks fail: held out: elbo." in words(result.stdout)

    def test_a_chance_deviation_passes_if_the_runs_own_draws_reproduce_it(self, runs, monkeypatch):
        monkeypatch.setattr(verify, "LIMIT", 0.0)  # now every true number is far
        result = pyrovae("verify", "normal", "--json")
        assert result.exit_code == 0, result.output
        notes = [check["note"] for check in json.loads(result.stdout)["checks"]]
        assert notes == [""] * 3 + ["the run's own draws reproduce it"] * 6
        change = {"value": -20.0}
        edit(runs / "normal" / "summary.json", lambda card: card["held_out"]["elbo"].update(change))
        assert "held out: elbo." in words(pyrovae("verify", "normal").stdout)

    @pytest.mark.parametrize("name", ["draw_error", "std_error"])
    @pytest.mark.parametrize("factor", [0.4, 100.0])
    def test_a_wrong_error_fails(self, name, factor, runs):
        """A large one would excuse any number."""

        def excused(card):
            number = card["held_out"]["elbo"]
            number["value"] += 20 * number["draw_error"] * (factor > 1)
            number[name] *= factor

        edit(runs / "normal" / "summary.json", excused)
        result = pyrovae("verify", "normal")
        assert result.exit_code == 1
        assert f"held out: elbo: {name} is" in words(result.stdout)

    def test_another_model_file_fails(self, runs):
        vae = pv.load("mixture/model.safetensors")
        pv.save(vae, "normal/model.safetensors")
        result = pyrovae("verify", "normal")
        assert result.exit_code == 1
        assert "sha256 of model.safetensors" in words(result.stdout)

    def test_nan_does_not_agree(self, runs):
        edit(
            runs / "normal" / "summary.json",
            lambda card: card["held_out"]["kl"].update(value=float("nan")),
        )
        assert pyrovae("verify", "normal").exit_code == 1


class TestUse:
    def test_sample_draws_pictures_and_arrays(self, runs):
        assert pyrovae("sample", "normal", "-n", 5, "--out", "s.png").exit_code == 0
        assert Path("s.png").read_bytes().startswith(b"\x89PNG")
        assert pyrovae("sample", "normal", "-n", 5, "--out", "s.npz").exit_code == 0
        found = arrays("s.npz")
        assert {k: found[k].shape for k in found} == {
            "z": (5, 2),
            "mean": (5, 8, 8),
            "x": (5, 8, 8),
        }
        assert set(np.unique(found["x"])) == {0, 1}

    def test_encode_gives_the_moments_of_the_guide(self, runs):
        x = pv.datasets.digits().test[:7]
        np.save("x.npy", x.numpy())
        assert pyrovae("encode", "normal", "x.npy", "--out", "c.npz").exit_code == 0
        found = arrays("c.npz")
        q = pv.load("normal/model.safetensors").encode(pv.datasets.binarize(x))
        np.testing.assert_allclose(found["mean"], q.mean.detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["scale"], q.stddev.detach(), rtol=1e-5)
        assert set(found) == {"mean", "scale"}

    def test_encode_writes_netcdf_of_the_held_out_data(self, runs):
        assert pyrovae("encode", "normal", "--num-draws", 3, "--out", "c.nc").exit_code == 0
        with xarray.open_dataset("c.nc", engine="scipy") as found:
            assert dict(found.sizes) == {"datum": 360, "latent": 2, "draw": 3}
            assert found.attrs["moments"] == "of q(z|x) itself"

    def test_impute_keeps_what_was_observed(self, runs):
        x = pv.datasets.digits().test[:6].numpy().copy()
        x[:, :4] = np.nan
        np.save("holes.npy", x)
        options = ("--num-samples", 5, "--num-proposals", 100, "--out", "f.npz")
        result = pyrovae("impute", "normal", "holes.npy", *options)
        assert result.exit_code == 0, result.output
        assert "effective sample size of 100 weights: median" in result.stdout
        assert "k̂ > 0.50, unreliable" in result.stdout  # 1 − 1/log₁₀ 100
        found = arrays("f.npz")
        assert found["draws"].shape == (5, 6, 8, 8)
        assert (found["draws"][:, :, 4:] == (x[:, 4:] > 0.5)).all()
        assert (found["mask"] == ~np.isnan(x)).all()
        assert found["ess"].shape == (6,)

    def test_the_same_seed_draws_the_same(self, runs):
        for name in ("a.npz", "b.npz"):
            pyrovae("sample", "normal", "-n", 4, "--seed", 3, "--out", name)
        one, two = arrays("a.npz"), arrays("b.npz")
        assert (one["x"] == two["x"]).all()


class TestCompare:
    def test_ranks_by_paired_evidence(self, runs):
        result = pyrovae("compare", "normal", "mixture", "--num-samples", 50, "--json")
        rows = json.loads(result.stdout)["runs"]
        assert {row["prior"] for row in rows} == {"StandardNormal", "GaussianMixture"}
        assert rows[0]["difference"]["value"] == 0
        assert rows[1]["difference"]["value"] == pytest.approx(
            rows[0]["log_px"]["value"] - rows[1]["log_px"]["value"]
        )

    def test_table(self, runs):
        text = words(pyrovae("compare", "normal", "mixture", "--num-samples", 50).stdout)
        assert "best" in text
        assert "worse by" in text

    def test_refuses_other_data(self, runs):
        assert "different held-out data" in fails("compare", "normal", "other")


class TestReport:
    def test_writes_a_page_and_names_the_condition(self, runs, monkeypatch):
        monkeypatch.setattr("pyrovae.report.findings.NUM_REFINED", 20)
        result = pyrovae("report", "normal", "--num-samples", 50, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        statuses = {v["name"]: v["status"] for v in found["verdicts"]}
        assert statuses["undertrained"] == "problem"  # 4 epochs
        html = Path("normal", "report.html").read_text(encoding="utf-8")
        assert "VAE on digits" in html
        assert "data:image/png;base64," in html
        assert "already exists" in fails("report", "normal")

    def test_of_a_run_dir_that_fit_wrote(self, runs):
        x = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
        np.save("binary.npy", x.numpy())
        vae = pv.build((4,), latent_dim=1, seed=0)
        pv.fit(vae, x, epochs=2, run_dir="of_fit", progress=False)
        assert "Name held-out data: --data FILE" in fails("report", "of_fit")
        result = pyrovae("report", "of_fit", "--data", "binary.npy", "--num-samples", 30)
        assert result.exit_code == 0, result.output
        assert "2 epochs" in Path("of_fit", "report.html").read_text(encoding="utf-8")


class TestRefusesRuns:
    """Every bad argument of the commands on runs: a message, exit code 2, no file."""

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("evaluate",), "Missing argument 'RUN'"),
            (("evaluate", "nowhere"), "nowhere is not a folder"),
            (("verify", "empty"), "empty has no summary.json, so it is not a finished run"),
            (
                ("report", "old"),
                "its format is missing, but this version of pyrovae reads format 1",
            ),
            (("evaluate", "damaged"), "its JSON cannot be read"),
            (("sample", "weightless", "--out", "s.png"), "model.safetensors"),
            (("evaluate", "normal", "--num-samples", "3"), "--num-samples"),
            (("evaluate", "normal", "--num-data", "1"), "--num-data"),
            (("evaluate", "normal", "--seed", "-1"), "--seed"),
            (("evaluate", "normal", "--data", "minst"), "neither a data set nor a file"),
            (("evaluate", "normal", "--data", "x.npy"), "other data, or another split"),
            (("verify", "moved"), "no longer exists"),
            (("sample", "normal"), "Missing option '--out'"),
            (("sample", "normal", "--out", "s.gif"), "does not end in .png or .npz"),
            (("sample", "normal", "--out", "no/s.png"), "no is not a folder"),
            (("sample", "normal", "--out", "x.npz"), "x.npz already exists"),
            (("sample", "normal", "--out", "empty.npz"), "empty.npz is a folder"),
            (("sample", "normal", "-n", "0", "--out", "s.png"), "--num"),
            (("encode", "normal", "--out", "c.csv"), "does not end in .npz or .nc"),
            (("encode", "normal", "nowhere.npy", "--out", "c.nc"), "nowhere.npy"),
            (("encode", "normal", "wide.npy", "--out", "c.nc"), "takes rows of shape (8, 8)"),
            (("impute", "normal", "--out", "f.npz"), "Missing argument 'FILE'"),
            (("impute", "normal", "x.npy", "--out", "f.npz"), "x.npy has no NaN"),
            (("impute", "normal", "x.npy", "--out", "f.png"), "does not end in .npz"),
            (("compare", "normal"), "at least two different runs"),
            (("compare", "normal", "normal"), "at least two different runs"),
            (("report", "normal", "--out", "r.pdf"), "does not end in .html"),
        ],
    )
    def test_with_a_message(self, args, message, runs):
        for name in ("empty", "empty.npz"):
            (runs / name).mkdir()
        for name in ("old", "damaged", "weightless", "moved"):
            shutil.copytree(runs / "normal", runs / name)
        edit(runs / "old" / "summary.json", lambda card: card.pop("format"))
        (runs / "damaged" / "summary.json").write_text('{"format": 1,')
        (runs / "weightless" / "model.safetensors").unlink()

        def move(card):
            card["settings"]["data"] = "gone.npy"
            card["data_file"] = "/nowhere/gone.npy"

        edit(runs / "moved" / "summary.json", move)
        np.save("x.npy", np.random.default_rng(1).uniform(size=(50, 8, 8)))
        np.save("wide.npy", np.zeros((20, 8, 9)))
        Path("x.npz").write_text("mine")
        before = sorted(runs.rglob("*"))
        assert message in fails(*args)
        assert sorted(runs.rglob("*")) == before
        assert Path("x.npz").read_text() == "mine"

    def test_force_replaces_a_file(self, runs):
        Path("s.npz").write_text("old")
        assert pyrovae("sample", "normal", "-n", 2, "--out", "s.npz", "--force").exit_code == 0
        assert arrays("s.npz")["x"].shape == (2, 8, 8)

    def test_ctrl_c_leaves_the_run_and_no_file(self, runs, monkeypatch):
        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr("pyrovae.report.findings.examine", interrupted)
        before = sorted(runs.rglob("*"))
        assert fails("report", "normal", code=130) == "Interrupted."
        assert sorted(runs.rglob("*")) == before

    def test_data_that_moved_are_found_by_name(self, runs, trained):
        shutil.copy(trained / "x.npy", "here.npy")
        assert pyrovae("verify", "other", "--data", "here.npy").exit_code == 0

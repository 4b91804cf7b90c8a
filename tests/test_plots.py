"""The pictures: what they show of the arrays, and what they refuse."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.errors import ConfigError, DataError
from pyrovae.training import Epoch, History

X = np.random.default_rng(0).uniform(size=(7, 5, 4))
CODES = np.random.default_rng(1).normal(size=(40, 5))
LABELS = np.arange(40) % 10


def history(num_epochs=3, validated=True):
    record = History(num_data=10)
    for n in range(1, num_epochs + 1):
        held_out = (-9.0 / n, 8.0 / n, 1.0 / n) if validated else (None,) * 3
        record.epochs.append(Epoch(n, -6.0 / n, 5.0 / n, 1.0 / n, *held_out, 0.1 * n))
    return record


def lines(figure):
    return [[line.get_ydata().tolist() for line in ax.lines] for ax in figure.axes]


def pixels(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


class TestTrainingCurve:
    def test_draws_each_term_in_its_own_panel_with_validation_dashed(self):
        figure = plots.training_curve(history())
        assert lines(figure) == [
            [[-6.0, -3.0, -2.0], [-9.0, -4.5, -3.0]],
            [[5.0, 2.5, 5.0 / 3], [8.0, 4.0, 8.0 / 3]],
            [[1.0, 0.5, 1.0 / 3], [1.0, 0.5, 1.0 / 3]],
        ]
        assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", "--"]
        assert {ax.get_ylabel() for ax in figure.axes} == {"nats per datum"}
        assert {ax.get_xlabel() for ax in figure.axes} == {"epoch"}

    def test_without_validation_there_is_one_line(self):
        assert [len(ax.lines) for ax in plots.training_curve(history(validated=False)).axes] == [
            1
        ] * 3

    def test_takes_a_mapping_without_validation_columns(self):
        columns = {name: history()[name] for name in ("epoch", "elbo", "reconstruction", "kl")}
        assert len(plots.training_curve(columns).axes) == 3

    def test_draws_in_the_subfigure_that_it_was_given(self):
        left, right = Figure().subfigures(1, 2)
        assert plots.training_curve(history(), fig=left) is left
        assert len(left.axes) == 3
        assert right.axes == []

    def test_refuses_an_empty_history(self):
        with pytest.raises(DataError, match="holds no epoch"):
            plots.training_curve(History())

    def test_names_the_column_that_is_missing_or_short(self):
        with pytest.raises(DataError, match="no column 'kl'"):
            plots.training_curve({"epoch": [1], "elbo": [0.0], "reconstruction": [0.0]})
        short = {"epoch": [1, 2], "elbo": [0.0], "reconstruction": [0, 0], "kl": [0, 0]}
        with pytest.raises(DataError, match="'elbo' has 1 values, but there are 2 epochs"):
            plots.training_curve(short)


class TestImages:
    def test_every_image_is_in_the_mosaic_row_by_row(self):
        shown = pixels(plots.images(X, columns=3))
        tiles = [
            shown[1 + i * 6 : 6 + i * 6, 1 + j * 5 : 5 + j * 5] for i in range(3) for j in range(3)
        ]
        np.testing.assert_array_equal(tiles[:7], X)
        assert np.isnan(tiles[7:]).all()

    def test_the_axis_tells_the_grey_scale(self):
        ax = plots.images(4 * X - 1)
        assert ax.get_xlabel() == f"white = {4 * X.min() - 1:.4g}, black = {4 * X.max() - 1:.4g}"
        assert plots.images(X / 2).get_xlabel() == "white = 0, black = 1"

    def test_takes_tensors_with_gradients_and_bytes(self):
        plots.images(torch.rand(3, 4, 4, requires_grad=True))
        plots.images(torch.zeros(3, 4, 4, dtype=torch.uint8))

    def test_draws_in_the_axes_that_it_was_given(self):
        ax = Figure().subplots()
        assert plots.images(X, ax=ax, title="seven") is ax
        assert ax.get_title() == "seven"

    @pytest.mark.parametrize("shape", [(5, 4), (2, 1, 5, 4), (0, 5, 4)])
    def test_refuses_other_shapes(self, shape):
        with pytest.raises(DataError, match=r"array has shape .* needs \(N, H, W\)"):
            plots.images(np.zeros(shape))

    def test_tells_where_a_number_is_not_finite(self):
        broken = X.copy()
        broken[2, 1, 3] = np.nan
        with pytest.raises(DataError, match=r"array\[2, 1, 3\] = nan"):
            plots.images(broken)

    @pytest.mark.parametrize("columns", [0, -1, 2.0, True])
    def test_refuses_columns_that_are_no_count(self, columns):
        with pytest.raises(ConfigError, match="columns = "):
            plots.images(X, columns=columns)

    @pytest.mark.parametrize("value", [[["a"]], [1j]])
    def test_refuses_what_is_no_real_number(self, value):
        with pytest.raises(DataError, match="real numbers"):
            plots.images(np.array(value))

    def test_refuses_ragged_lists(self):
        with pytest.raises(DataError, match="array is no array"):
            plots.images([[[1, 2]], [[1]]])


class TestReconstructions:
    def test_a_reconstruction_is_below_its_input_and_labelled(self):
        ax = plots.reconstructions(X, 1 - X, columns=4)
        labels = {
            t.get_text(): y for t, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
        }
        assert [t.get_text() for t in ax.get_yticklabels()] == ["input", "reconstruction"] * 2
        assert labels["input"] < labels["reconstruction"]
        shown = pixels(ax)
        np.testing.assert_array_equal(shown[1:6, 1:5], X[0])
        np.testing.assert_array_equal(shown[7:12, 1:5], 1 - X[0])

    def test_refuses_two_different_shapes(self):
        with pytest.raises(DataError, match=r"reconstructed has \(6, 5, 4\)"):
            plots.reconstructions(X, X[:6])


class TestLatentScatter:
    def test_two_dimensions_are_drawn_as_they_are(self):
        ax = plots.latent_scatter(CODES[:, :2])
        np.testing.assert_allclose(ax.collections[0].get_offsets(), CODES[:, :2])
        assert ax.get_xlabel() == "latent dimension 1"

    def test_each_label_stands_at_its_median(self):
        ax = plots.latent_scatter(CODES[:, :2], LABELS)
        at = {text.get_text(): text.xy for text in ax.texts}
        assert sorted(at) == [str(label) for label in range(10)]
        np.testing.assert_allclose(at["3"], np.median(CODES[LABELS == 3, :2], axis=0))

    def test_every_point_is_drawn_in_the_colour_of_its_class(self):
        ax = plots.latent_scatter(CODES[:, :2], LABELS)
        colors = {}
        for layer in ax.collections:
            for point, color in zip(layer.get_offsets(), layer.get_facecolors(), strict=False):
                colors[tuple(np.round(point, 9))] = tuple(color[:3])
        drawn = [colors[tuple(np.round(code, 9))] for code in CODES[:, :2]]
        assert len(set(zip(drawn, LABELS.tolist(), strict=True))) == 10
        assert len(set(drawn)) == 10

    def test_the_legend_has_the_marker_and_colour_of_the_points(self):
        ax = plots.latent_scatter(CODES[:, :2], LABELS)
        of_class = {
            label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        for layer, rows in zip(ax.collections, (LABELS < 5, LABELS >= 5), strict=False):
            np.testing.assert_allclose(layer.get_offsets(), CODES[rows, :2])
            for label, color in zip(LABELS[rows], layer.get_facecolors(), strict=True):
                handle = of_class[str(label)]
                np.testing.assert_array_equal(
                    handle.get_paths()[0].vertices, layer.get_paths()[0].vertices
                )
                np.testing.assert_array_equal(handle.get_facecolors()[0][:3], color[:3])

    def test_more_dimensions_are_projected_and_the_axes_say_how_much_is_left(self):
        from sklearn.decomposition import PCA

        ax = plots.latent_scatter(CODES)
        pca = PCA(2).fit(CODES)
        np.testing.assert_allclose(
            np.abs(ax.collections[0].get_offsets()), np.abs(pca.transform(CODES))
        )
        first, second = 100 * pca.explained_variance_ratio_
        assert ax.get_xlabel() == f"principal component 1 ({first:.1f} % of the variance)"
        assert ax.get_ylabel() == f"principal component 2 ({second:.1f} % of the variance)"

    def test_equal_codes_have_no_variance_to_explain(self):
        assert "0.0 %" in plots.latent_scatter(np.ones((4, 3))).get_xlabel()

    def test_one_dimension_is_drawn_against_the_label(self):
        ax = plots.latent_scatter(CODES[:, :1], LABELS)
        assert "0 at the bottom to 9" in ax.get_ylabel()
        assert plots.latent_scatter(CODES[:, :1]).get_ylabel() == "row"

    def test_labels_may_be_names(self):
        ax = plots.latent_scatter(CODES[:, :2], ["cat", "dog"] * 20)
        assert sorted(text.get_text() for text in ax.texts) == ["cat", "dog"]

    def test_says_when_there_are_too_many_classes_to_colour(self):
        ax = plots.latent_scatter(CODES[:, :2], np.arange(40), title="codes")
        assert ax.get_title() == "codes\n40 classes, too many to colour"
        assert not ax.texts

    def test_refuses_other_shapes(self):
        with pytest.raises(DataError, match=r"codes has shape \(40,\)"):
            plots.latent_scatter(CODES[:, 0])
        with pytest.raises(DataError, match=r"labels has shape \(39,\), but there are 40 codes"):
            plots.latent_scatter(CODES, LABELS[:39])
        with pytest.raises(DataError, match="two or more"):
            plots.latent_scatter(CODES[:1])


@pytest.mark.parametrize(
    "axes",
    [
        plots.images(X),
        plots.images(X[:1]),
        plots.reconstructions(X, X),
        plots.latent_scatter(CODES, LABELS),
        plots.training_curve(history(1)).axes[0],
    ],
)
def test_each_picture_is_saved_with_nothing_cut_off(axes, tmp_path):
    assert isinstance(axes, Axes)
    axes.figure.savefig(tmp_path / "picture.png")
    inside = axes.figure.bbox
    box = axes.get_tightbbox()
    assert box.x0 >= inside.x0 - 1
    assert box.x1 <= inside.x1 + 1
    assert box.y0 >= inside.y0 - 1
    assert box.y1 <= inside.y1 + 1


def test_pyplot_and_torch_are_not_imported():
    code = "import sys, pyrovae.plots; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"

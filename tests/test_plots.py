"""The plots: what they show of the arrays, and what they refuse."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

import pyrovae
from pyrovae import plots
from pyrovae.core.pareto import MOST, pareto_k_threshold
from pyrovae.errors import ConfigError, DataError
from pyrovae.history import Epoch, History

X = np.random.default_rng(0).uniform(size=(7, 5, 4))
CODES = np.random.default_rng(1).normal(size=(40, 5))
LABELS = np.arange(40) % 10


VALUES = np.array([-1.5, 0.0, 2.0])
PLANE = np.random.default_rng(2).uniform(size=(3, 3, 5, 4))
Z1, Z2 = np.linspace(-5, 5, 201), np.linspace(-3, 4, 221)
SHARES = (0.5, 0.9, 0.99)
RECORDED = {
    "step": [10, 20, 30],
    "rate": [0.1, None, 3.0],
    "kl_per_dimension": [np.array([0.1, 0.0]), None, torch.tensor([2.0, 0.0])],
    "signal_to_noise": [500.0, 20.0, 0.5],
    "my_own": [-1.0, 2.0, 3.0],
}


def estimate(value, std_error=0.1):
    return SimpleNamespace(value=value, std_error=std_error)


def gap_record(**changes):
    family, network = np.array([0.1, 0.3, 0.2, 2.0]), np.array([0.5, 0.1, 0.9, 0.2])
    return SimpleNamespace(
        approximation=torch.tensor(family),
        amortization=torch.tensor(network),
        pareto_k=torch.tensor([0.1, 0.2, -torch.inf, 0.9]),
        mean_approximation=estimate(0.65),
        mean_amortization=estimate(0.425),
        mean_total=estimate(1.075),
        generalization=None,
        **changes,
    )


def calibration_record(num_dimensions=2, num_draws=9):
    uniform = np.arange(1, num_draws + 2) / (num_draws + 1)
    ecdf = np.stack([uniform ** (1 + d) for d in range(num_dimensions)])
    reach = 0.2 * np.sqrt(uniform * (1 - uniform))
    levels = np.array([0.25, 0.5, 0.75])
    return SimpleNamespace(
        ecdf=torch.tensor(ecdf),
        band=torch.tensor(np.stack([uniform - reach, uniform + reach], 1)),
        level=0.9,
        is_calibrated=torch.tensor([d == 0 for d in range(num_dimensions)]),
        coverage_levels=levels,
        expected_coverage=levels**2,
        coverage_std_error=np.full(3, 0.01),
    )


def comparison_record():
    rows = [
        SimpleNamespace(
            name=name,
            log_px=pyrovae.diagnostics.Estimate(-20.0 - value, 0.2),
            difference=estimate(value, error),
            bias=0.05,
            share_failed=share,
            is_distinguishable=value > 1,
        )
        for name, value, error, share in [
            ("VampPrior", 0.0, np.nan, 0.0),
            ("a Gaussian mixture of 20", 0.3, 0.2, 0.02),
            ("StandardNormal", 1.5, 0.1, 0.1),
        ]
    ]
    return SimpleNamespace(rows=tuple(rows))


def log_normal(mean, covariance):
    """Up to a constant, on the grid (Z1, Z2)."""
    away = np.stack(np.meshgrid(Z1, Z2, indexing="ij"), -1) - mean
    return -0.5 * np.einsum("ijk,kl,ijl->ij", away, np.linalg.inv(covariance), away)


MEAN, COVARIANCE = np.array([0.5, 1.0]), np.array([[0.6, 0.3], [0.3, 0.4]])


def squared_distances(points):
    """Mahalanobis' of points (n, 2) from MEAN."""
    away = points - MEAN
    return (away @ np.linalg.inv(COVARIANCE) * away).sum(-1)


def share_within(patch, points):
    """Of points in data units, within an ellipse."""
    circle = patch.get_patch_transform().inverted().transform(points)
    return ((circle**2).sum(1) < 1).mean()


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

    def test_the_axis_shows_the_gray_scale(self):
        ax = plots.images(4 * X - 1)
        assert ax.get_xlabel() == f"white = {4 * X.min() - 1:.4g}, black = {4 * X.max() - 1:.4g}"
        assert plots.images(X / 2).get_xlabel() == "white = 0, black = 1"

    @pytest.mark.parametrize("dim", [1, 3])
    def test_color_is_drawn_as_it_is_with_channels_first_or_last(self, dim):
        color = np.random.default_rng(0).random((7, 5, 4, 3))
        ax = plots.images(np.moveaxis(color, 3, dim), columns=3)
        shown = pixels(ax)
        tiles = [
            shown[1 + i * 6 : 6 + i * 6, 1 + j * 5 : 5 + j * 5] for i in range(3) for j in range(3)
        ]
        np.testing.assert_array_equal([tile[..., :3] for tile in tiles[:7]], color)
        assert (shown[0, :, 3] == 0).all()  # the gaps are transparent
        assert ax.get_xlabel() == "dark = 0, light = 1"

    def test_one_channel_is_gray_and_opacity_lies_over_white(self):
        np.testing.assert_array_equal(pixels(plots.images(X[:, None])), pixels(plots.images(X)))
        color = np.concatenate([np.full((1, 5, 5, 3), 0.25), np.full((1, 5, 5, 1), 0.5)], -1)
        color[0, 0, 0] = 1
        assert pixels(plots.images(color))[2, 2, 0] == 0.625

    def test_every_grid_takes_color(self):
        x = np.random.default_rng(0).random((4, 3, 5, 4))
        pairs = pixels(plots.reconstructions(x, 1 - x))
        np.testing.assert_array_equal(pairs[1, 1, :3], x[0, :, 0, 0])
        rows = pixels(plots.traversals(x.reshape(2, 2, 3, 5, 4), [0.0, 1.0]))
        np.testing.assert_array_equal(rows[1, 1, :3], x[0, :, 0, 0])
        plane = pixels(plots.latent_manifold(x, [0.0, 1.0]))  # z0 across, z1 upwards
        np.testing.assert_array_equal(plane[7, 1, :3], x[0, :, 0, 0])
        np.testing.assert_array_equal(plane[1, 1, :3], x[1, :, 0, 0])

    def test_takes_tensors_with_gradients_and_bytes(self):
        plots.images(torch.rand(3, 4, 4, requires_grad=True))
        plots.images(torch.zeros(3, 4, 4, dtype=torch.uint8))

    def test_draws_in_the_axes_that_it_was_given(self):
        ax = Figure().subplots()
        assert plots.images(X, ax=ax, title="seven") is ax
        assert ax.get_title() == "seven"

    @pytest.mark.parametrize("shape", [(5, 4), (2, 5, 5, 5), (0, 5, 4), (2, 0, 4)])
    def test_refuses_other_shapes(self, shape):
        with pytest.raises(DataError, match=r"array has shape .* needs \(N, H, W\)"):
            plots.images(np.zeros(shape))

    def test_says_where_a_number_is_not_finite(self):
        broken = X.copy()
        broken[2, 1, 3] = np.nan
        with pytest.raises(DataError, match=r"array\[2, 1, 3\] = nan"):
            plots.images(broken)

    @pytest.mark.parametrize("columns", [0, -1, 2.0, True])
    def test_refuses_an_invalid_number_of_columns(self, columns):
        with pytest.raises(ConfigError, match="columns = "):
            plots.images(X, columns=columns)

    @pytest.mark.parametrize("value", [[["a"]], [1j]])
    def test_refuses_values_that_are_not_real_numbers(self, value):
        with pytest.raises(DataError, match="real numbers"):
            plots.images(np.array(value))

    def test_refuses_ragged_lists(self):
        with pytest.raises(DataError, match="array is not an array"):
            plots.images([[[1, 2]], [[1]]])


class TestReconstructions:
    def test_a_reconstruction_is_below_its_input_and_labeled(self):
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
        assert ax.get_xlabel() == "latent dimension 0"

    def test_each_label_is_at_its_median(self):
        ax = plots.latent_scatter(CODES[:, :2], LABELS)
        at = {text.get_text(): text.xy for text in ax.texts}
        assert sorted(at) == [str(label) for label in range(10)]
        np.testing.assert_allclose(at["3"], np.median(CODES[LABELS == 3, :2], axis=0))

    def test_every_point_is_drawn_in_the_color_of_its_class(self):
        ax = plots.latent_scatter(CODES[:, :2], LABELS)
        colors = {}
        for layer in ax.collections:
            for point, color in zip(layer.get_offsets(), layer.get_facecolors(), strict=False):
                colors[tuple(np.round(point, 9))] = tuple(color[:3])
        drawn = [colors[tuple(np.round(code, 9))] for code in CODES[:, :2]]
        assert len(set(zip(drawn, LABELS.tolist(), strict=True))) == 10
        assert len(set(drawn)) == 10

    def test_the_legend_has_the_marker_and_color_of_the_points(self):
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
        assert ax.get_xlabel() == f"principal component 0 ({first:.1f} % of the variance)"
        assert ax.get_ylabel() == f"principal component 1 ({second:.1f} % of the variance)"

    def test_equal_codes_have_no_variance_to_explain(self):
        assert "0.0 %" in plots.latent_scatter(np.ones((4, 3))).get_xlabel()

    def test_one_dimension_is_drawn_against_the_label(self):
        ax = plots.latent_scatter(CODES[:, :1], LABELS)
        assert "0 at the bottom to 9" in ax.get_ylabel()
        assert plots.latent_scatter(CODES[:, :1]).get_ylabel() == "row"

    def test_labels_may_be_names(self):
        ax = plots.latent_scatter(CODES[:, :2], ["cat", "dog"] * 20)
        assert sorted(text.get_text() for text in ax.texts) == ["cat", "dog"]

    def test_says_when_there_are_too_many_classes_to_color(self):
        ax = plots.latent_scatter(CODES[:, :2], np.arange(40), title="codes")
        assert ax.get_title() == "codes\n40 classes, too many to color"
        assert not ax.texts

    def test_refuses_other_shapes(self):
        with pytest.raises(DataError, match=r"codes has shape \(40,\)"):
            plots.latent_scatter(CODES[:, 0])
        with pytest.raises(DataError, match=r"labels has shape \(39,\), but there are 40 codes"):
            plots.latent_scatter(CODES, LABELS[:39])
        with pytest.raises(DataError, match="at least two"):
            plots.latent_scatter(CODES[:1])


class TestFlightRecord:
    def test_each_column_but_the_step_has_its_panel_and_unit(self):
        figure = plots.training_monitor(RECORDED, {"my_own": "parsec"})
        panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
        assert [ax.get_ylabel() for ax in figure.axes] == [
            *("nats per datum", "nats per datum", "ratio, no unit", "parsec")
        ]
        assert {ax.get_xlabel() for ax in figure.axes} == {"step"}
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.1, np.nan, 3.0])
        drawn = [line.get_ydata() for line in panels["KL, one line per latent dimension"].lines]
        np.testing.assert_array_equal(drawn, [[0.1, np.nan, 2.0], [0.0, np.nan, 0.0]])
        assert panels["my own"].get_yscale() == "linear"
        assert panels["encoder gradient, signal to noise"].get_yscale() == "log"

    def test_takes_arrays_and_one_column(self):
        figure = plots.training_monitor(
            {"step": np.arange(20), "kl_per_dimension": torch.rand(20, 7)}
        )
        assert [len(ax.lines) for ax in figure.axes] == [7]

    def test_draws_in_the_figure_that_it_was_given(self):
        left, right = Figure().subfigures(1, 2)
        assert plots.training_monitor(RECORDED, fig=right) is right
        assert (len(left.axes), len(right.axes)) == (0, 4)

    @pytest.mark.parametrize("parts", ["figure", "subfigure"])
    def test_panels_do_not_overlap_in_a_figure_without_layout(self, parts):
        figure = Figure(figsize=(10, 5))
        place = figure if parts == "figure" else figure.subfigures(1, 1)
        plots.training_monitor(RECORDED, fig=place)
        figure.draw_without_rendering()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert not any(a.overlaps(b) for a, b in pairs)

    def test_a_layout_of_the_caller_stays(self):
        figure = Figure(layout="tight")
        engine = plots.training_monitor(RECORDED, fig=figure).get_layout_engine()
        assert engine is figure.get_layout_engine()
        assert type(engine).__name__ == "TightLayoutEngine"

    def test_a_number_of_units_is_whole(self):
        figure = plots.training_monitor({"step": [1, 2], "active_units": [0, 2]})
        assert all(tick == round(tick) for tick in figure.axes[0].get_yticks())

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            ({"rate": [1.0]}, r"columns \['rate'\], but a monitor record needs \"step\""),
            ({"step": [1]}, "at least one other column"),
            ([1, 2], "records is a list"),
            ({"step": [], "rate": []}, r"'step' has shape \(0,\)"),
            ({"step": [1, 2], "rate": [1.0]}, r"column 'rate' has shape \(1,\), but there are 2"),
            ({"step": [1, 2], "rate": [[1, 2], [3]]}, "rate is not an array"),
            ({"step": [1], "rate": ["low"]}, "real numbers"),
        ],
    )
    def test_says_what_is_wrong_with_a_record(self, records, message):
        with pytest.raises(DataError, match=message):
            plots.training_monitor(records)


class TestWhatMovingZDoes:
    @pytest.mark.parametrize("images", [PLANE, PLANE.reshape(9, 5, 4)])
    def test_the_manifold_has_z0_to_the_right_and_z1_upwards(self, images):
        ax = plots.latent_manifold(images, VALUES)
        shown = pixels(ax)
        for i in range(3):
            for j in range(3):
                top, left = 1 + 6 * (2 - j), 1 + 5 * i
                np.testing.assert_array_equal(
                    shown[top : top + 5, left : left + 4], PLANE[i, j], err_msg=f"{i}, {j}"
                )
        names = {
            t.get_text(): y for t, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
        }
        assert names == {"−1.5": 15, "0": 9, "2": 3}
        assert list(ax.get_xticks()) == [2.5, 7.5, 12.5]

    def test_the_two_axes_may_differ(self):
        ax = plots.latent_manifold(PLANE[:, :2], VALUES, second=[5, 6])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["5", "6"]

    def test_a_traversal_is_a_row(self):
        ax = plots.traversals(PLANE[:2], VALUES, names=["z3", "z1"])
        shown = pixels(ax)
        np.testing.assert_array_equal(shown[7:12, 11:15], PLANE[1, 2])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["z3", "z1"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["−1.5", "0", "2"]

    def test_of_many_values_at_most_ten_are_written(self):
        ax = plots.traversals(np.zeros((1, 37, 4, 4)), np.arange(37))
        assert [label.get_text() for label in ax.get_xticklabels()][:3] == ["0", "4", "8"]
        assert len(ax.get_xticks()) == 10

    @pytest.mark.parametrize("draw", [plots.latent_manifold, plots.traversals])
    @pytest.mark.parametrize(
        ("images", "values", "message"),
        [
            (PLANE[:, :2], VALUES, r"images has shape \(3, 2, 5, 4\)"),
            (X, VALUES, r"images has shape \(7, 5, 4\)"),
            (PLANE, [0, 0, 1], "increase"),
            (PLANE, [[0, 1, 2]], r"values along an axis must be \(K,\)"),
            (PLANE, [0, np.nan, 1], "finite numbers"),
        ],
    )
    def test_refuses_values_that_are_not_a_grid(self, draw, images, values, message):
        with pytest.raises(DataError, match=message):
            draw(images, values)

    def test_each_row_needs_its_name(self):
        with pytest.raises(DataError, match="1 names were given for 2 items"):
            plots.traversals(PLANE[:2], VALUES, names=["z1"])


class TestEllipses:
    TOLERANCE = 4 * np.sqrt(0.25 / 20_000)  # 4 standard errors of a share of one half

    def test_one_holds_half_of_its_density(self):
        spread = np.broadcast_to(COVARIANCE, (40, 2, 2))
        ax = plots.latent_scatter(CODES[:, :2], covariances=spread, num_ellipses=2)
        draws = np.random.default_rng(0).multivariate_normal(CODES[39, :2], COVARIANCE, 20_000)
        assert abs(share_within(ax.patches[1], draws) - 0.5) < self.TOLERANCE
        np.testing.assert_allclose(ax.patches[0].center, CODES[0, :2])
        assert ax.get_title() == "ellipses: 50 % of q(z|x), for 2 of 40 codes"

    def test_scales_are_those_of_independent_dimensions(self):
        ax = plots.latent_scatter(CODES[:, :2], scales=np.tile([0.1, 0.4], (40, 1)))
        assert len(ax.patches) == 30
        sides = sorted([ax.patches[0].width, ax.patches[0].height])
        np.testing.assert_allclose(sides, 2 * np.sqrt(2 * np.log(2)) * np.array([0.1, 0.4]))

    def test_more_dimensions_are_projected_like_the_points(self):
        from sklearn.decomposition import PCA

        factor = np.random.default_rng(3).normal(size=(5, 5))
        spread = np.broadcast_to(factor @ factor.T, (40, 5, 5))
        ax = plots.latent_scatter(CODES, covariances=spread, num_ellipses=1)
        pca, points = PCA(2).fit(CODES), ax.collections[0].get_offsets()
        signs = np.sign((pca.transform(CODES) * points).sum(0))
        draws = np.random.default_rng(0).multivariate_normal(CODES[0], spread[0], 20_000)
        share = share_within(ax.patches[0], pca.transform(draws) * signs)
        assert abs(share - 0.5) < self.TOLERANCE

    def test_one_dimension_has_intervals(self):
        ax = plots.latent_scatter(CODES[:, :1], scales=np.full((40, 1), 2.0), num_ellipses=1)
        sides = sorted([ax.patches[0].width, ax.patches[0].height])
        np.testing.assert_allclose(sides, [0, 2 * 2.0 * 0.6744897501960817])  # quartiles

    def test_an_ellipse_has_the_color_of_its_class(self):
        from matplotlib.colors import to_hex

        ax = plots.latent_scatter(CODES[:, :2], LABELS, scales=np.ones((40, 2)))
        colors = {tuple(np.round(p.center, 9)): to_hex(p.get_edgecolor()) for p in ax.patches}
        of_class = {
            label: to_hex(handle.get_facecolors()[0])
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        for code, label in zip(CODES[:, :2], LABELS, strict=True):
            assert (
                colors.get(tuple(np.round(code, 9)), of_class[str(label)]) == of_class[str(label)]
            )

    def test_all_of_them_are_within_the_view(self):
        ax = plots.latent_scatter(np.zeros((2, 2)), scales=np.full((2, 2), 9.0))
        assert ax.get_xlim()[0] < -9 * np.sqrt(2 * np.log(2))

    def test_refuses_spreads_that_do_not_fit(self):
        with pytest.raises(DataError, match=r"scales has shape \(40, 5\), but there are 40 codes"):
            plots.latent_scatter(CODES[:, :2], scales=np.ones((40, 5)))
        with pytest.raises(DataError, match=r"it needs \(40, 5, 5\)"):
            plots.latent_scatter(CODES, covariances=np.eye(5))
        with pytest.raises(ConfigError, match="both scales and covariances"):
            plots.latent_scatter(CODES, scales=1, covariances=1)
        with pytest.raises(ConfigError, match="num_ellipses = 0"):
            plots.latent_scatter(CODES, scales=np.ones((40, 5)), num_ellipses=0)


class TestGridPosterior:
    """Of a normal density the region that holds a share s is where d² < −2 log(1 − s)."""

    def test_shades_and_outlines_hold_their_shares(self):
        log_density = log_normal(MEAN, COVARIANCE) - 700  # the constant does not matter
        ax = plots.grid_posterior(log_density, (Z1, Z2), log_guide=log_density + 1000)
        shades, outlines = ax.collections
        for share, path in zip(SHARES, outlines.get_paths()[::-1], strict=True):
            np.testing.assert_allclose(
                squared_distances(path.vertices), -2 * np.log(1 - share), rtol=0.03
            )
        for share, path in zip(SHARES[1:], shades.get_paths()[-2::-1], strict=True):
            found = squared_distances(path.vertices)  # a ring: its outer edge is the region's
            np.testing.assert_allclose(found.max(), -2 * np.log(1 - share), rtol=0.03)

    def test_an_uneven_grid_weighs_its_cells(self):
        z = np.sinh(np.linspace(-2.5, 2.5, 301))
        log_density = -(z[:, None] ** 2 + z**2) / 2
        outlines = plots.grid_posterior(log_density, (z, z), log_guide=log_density).collections[1]
        for share, path in zip(SHARES, outlines.get_paths()[::-1], strict=True):
            np.testing.assert_allclose((path.vertices**2).sum(1), -2 * np.log(1 - share), rtol=0.05)

    def test_a_normal_guide_is_outlined_exactly(self):
        options = {"mean": MEAN, "covariance": COVARIANCE}
        ax = plots.grid_posterior(log_normal(MEAN, COVARIANCE), (Z1, Z2), **options)
        for share, patch in zip(SHARES, ax.patches, strict=True):
            vertices = patch.get_patch_transform().transform([[1, 0], [0, 1], [-0.6, 0.8]])
            np.testing.assert_allclose(squared_distances(vertices), -2 * np.log(1 - share))

    def test_the_view_is_where_the_densities_are(self):
        narrow = log_normal(MEAN, 0.02 * np.eye(2))
        left, right = plots.grid_posterior(narrow, (Z1, Z2)).get_xlim()
        assert MEAN[0] - 1 < left < right < MEAN[0] + 1
        far = {"mean": [-3.0, 0.0], "covariance": 0.01 * np.eye(2)}
        assert plots.grid_posterior(narrow, (Z1, Z2), **far).get_xlim()[0] < -3.2

    def test_draws_are_points_where_they_are(self):
        draws = torch.tensor([[0.5, 1.0], [0.6, 1.2]])
        ax = plots.grid_posterior(log_normal(MEAN, COVARIANCE), (Z1, Z2), draws=draws)
        np.testing.assert_allclose(ax.collections[-1].get_offsets(), draws)

    @pytest.mark.parametrize("num_panels", [1, 3])
    def test_the_key_covers_no_panel_and_no_name(self, num_panels):
        figure = Figure(figsize=(3.5 * num_panels, 3.8), layout="constrained")
        options = {"mean": MEAN, "covariance": COVARIANCE, "draws": [MEAN]}
        for ax in figure.subplots(1, num_panels, squeeze=False)[0]:
            plots.grid_posterior(log_normal(MEAN, COVARIANCE), (Z1, Z2), ax=ax, **options)
        figure.draw_without_rendering()
        for ax in figure.axes:
            key = ax.get_legend().get_window_extent()
            others = [other.get_window_extent() for other in figure.axes]
            others += [other.xaxis.get_tightbbox() for other in figure.axes]
            others += [o.get_legend().get_window_extent() for o in figure.axes if o is not ax]
            assert not any(key.overlaps(box) for box in others)
            assert key.y0 >= 0

    def test_impossible_places_are_white(self):
        log_density = log_normal(MEAN, COVARIANCE)
        log_density[:100] = -np.inf
        shades = plots.grid_posterior(log_density, (Z1, Z2)).collections[0]
        left = min(path.vertices[:, 0].min() for path in shades.get_paths())
        assert Z1[99] < left <= Z1[100]

    @pytest.mark.parametrize(
        ("log_density", "options", "error", "message"),
        [
            (np.zeros((3, 3)), {}, DataError, r"axes have 201 and 221 values, so it needs"),
            (np.full((201, 221), -np.inf), {}, DataError, "largest value of log_density is -inf"),
            (np.full((201, 221), np.nan), {}, DataError, "finite maximum"),
            (log_normal(MEAN, 1e-4 * np.eye(2)), {}, DataError, "Use finer axes"),
            (None, {"mean": [0, 0]}, ConfigError, "outlined once"),
            (None, {"covariance": np.eye(2)}, ConfigError, "outlined once"),
            (None, {"log_guide": 0, "mean": 0, "covariance": 0}, ConfigError, "given twice"),
            (None, {"mean": [0], "covariance": 1}, DataError, r"mean has shape \(1,\)"),
            (None, {"log_guide": np.zeros(3)}, DataError, r"log_guide has shape \(3,\)"),
            (None, {"draws": np.zeros((1, 9, 2))}, DataError, r"draws has shape \(1, 9, 2\)"),
        ],
    )
    def test_refuses_what_is_not_a_density_on_the_grid(self, log_density, options, error, message):
        log_density = log_normal(MEAN, COVARIANCE) if log_density is None else log_density
        with pytest.raises(error, match=message):
            plots.grid_posterior(log_density, (Z1, Z2), **options)

    def test_a_plane_has_two_axes(self):
        with pytest.raises(DataError, match="axes has 1 entries"):
            plots.grid_posterior(np.zeros(3), (Z1,))


class TestKLByDimension:
    def test_bars_are_means_in_falling_order_with_errors(self):
        kl = np.array([[1.0, 5.0, 0.0], [3.0, 9.0, 0.0]])
        ax = plots.kl_by_dimension(kl)
        assert [bar.get_height() for bar in ax.patches] == [7.0, 2.0, 0.0]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "0", "2"]
        bars = ax.collections[0].get_segments()
        np.testing.assert_allclose([bar[:, 1] for bar in bars], [[3, 11], [0, 4], [0, 0]])
        assert ax.get_ylabel() == "KL(q(z_d|x) ‖ p(z_d)), nats, ± 2 s.e."

    @pytest.mark.parametrize("as_record", [False, True])
    def test_the_inactive_are_hatched_and_counted(self, as_record):
        flags = torch.tensor([True, False, True])
        active = SimpleNamespace(is_active=flags) if as_record else flags
        ax = plots.kl_by_dimension([0.2, 0.1, 3.0], active)
        assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, False, True]
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == ["active: 2 of 3", "inactive: 1"]

    def test_takes_the_records_of_the_diagnostics(self):
        names = ("a", "b")
        parts = SimpleNamespace(kl_per_dimension=torch.tensor([[0.0, 1.0]]), names=names)
        ax = plots.kl_by_dimension(parts)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "a"]
        collapse = {"mean_kl": torch.tensor([0.0, 1.0]), "names": names}
        collapse["is_collapsed"] = torch.tensor([True, False])
        bars = plots.kl_by_dimension(SimpleNamespace(**collapse)).patches
        assert [bool(bar.get_hatch()) for bar in bars] == [False, True]

    def test_many_dimensions_are_not_named(self):
        ax = plots.kl_by_dimension(np.arange(100.0))
        assert list(ax.get_xticks()) == []
        assert ax.get_xlabel() == "latent dimension (of 100), largest KL first"

    @pytest.mark.parametrize(
        ("kl", "options", "message"),
        [
            ([[[1.0]]], {}, r"kl has shape \(1, 1, 1\)"),
            ([np.nan, 1.0], {}, "does not factorize"),
            ([np.inf, 1.0], {}, r"kl\[0\] = inf"),
            ([1.0, 2.0], {"active": [True]}, r"active has shape \(1,\)"),
            ([1.0, 2.0], {"active": [0.1, 0.2]}, "dtype float64"),
            ([1.0, 2.0], {"names": ["one"]}, "1 names were given for 2"),
        ],
    )
    def test_refuses_values_that_are_not_a_kl_by_dimension(self, kl, options, message):
        with pytest.raises(DataError, match=message):
            plots.kl_by_dimension(kl, **options)


class TestParetoK:
    K = np.array([0.2, 0.9, -np.inf, np.inf, np.nan, 0.7])

    def test_points_by_datum_with_the_failed_apart(self):
        ax = plots.pareto_k(self.K)
        covered, failed = (layer.get_offsets().tolist() for layer in ax.collections)
        low, high = ax.get_ylim()
        assert covered[0] == [0, 0.2]
        assert covered[1][0] == 2
        assert low < covered[1][1] < 0  # −∞ at the lower edge
        assert covered[-1] == [5, 0.7]  # at the threshold is not above it
        assert failed[0] == [1, 0.9]
        assert 0.9 < failed[1][1] < high  # ∞ at the upper one
        assert ax.get_title() == "k̂ > 0.70 for 2 of 6 data points (1 unknown): rows 3, 1"

    def test_the_threshold_is_the_records_or_that_of_the_draws(self):
        assert plots.readings.THRESHOLD == MOST
        record = SimpleNamespace(pareto_k=torch.tensor([0.4, 0.6]), threshold=0.5)
        assert plots.pareto_k(record).lines[0].get_ydata()[0] == 0.5
        drawn = plots.pareto_k(record, num_samples=200).lines[0].get_ydata()[0]
        assert drawn == pareto_k_threshold(200)

    def test_rows_of_a_random_subset_keep_their_numbers(self):
        record = SimpleNamespace(pareto_k=np.array([0.1, 0.8]), rows=np.array([40, 7]))
        ax = plots.pareto_k(record)
        assert ax.collections[1].get_offsets().tolist() == [[7, 0.8]]
        assert ax.get_title().endswith("row 7")

    def test_names_the_five_worst(self):
        title = plots.pareto_k(np.linspace(0, 2, 100), title="digits").get_title()
        assert title == "digits\nk̂ > 0.70 for 65 of 100 data points: worst rows 99, 98, 97, 96, 95"
        assert plots.pareto_k([0.1]).get_title() == "k̂ > 0.70 for 0 of 1 data points"

    @pytest.mark.parametrize("k", [np.zeros((2, 3)), [], [np.nan, np.nan]])
    def test_refuses_values_that_are_not_a_k_by_datum(self, k):
        with pytest.raises(DataError, match="one k̂ per datum"):
            plots.pareto_k(k)
        with pytest.raises(ConfigError, match="num_samples"):
            plots.pareto_k([0.1], num_samples=1)


class TestGaps:
    def test_each_row_has_a_point_a_datum_and_the_mean(self):
        ax = plots.gaps(gap_record())
        points = [
            (round(layer.get_offsets()[0, 1]), layer.get_offsets()[:, 0].tolist())
            for layer in ax.collections
            if isinstance(layer, PathCollection)
        ]
        # k̂ > 0.7 sets the last datum apart, but for amortization, which needs no log p(x)
        expected = [
            (0, [0.6, 0.4, 1.1]),
            (0, [2.2]),
            (1, [0.5, 0.1, 0.9, 0.2]),
            (2, [0.1, 0.3, 0.2]),
            (2, [2.0]),
        ]
        for (place, values), (row, numbers) in zip(points, expected, strict=True):
            assert place == row
            np.testing.assert_allclose(values, numbers)
        names = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
        means = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "D"]
        assert names == ["total", "amortization", "approximation"]
        assert means == [[1.075], [0.425], [0.65]]

    def test_the_legend_explains_hollow_points_where_there_are_any(self):
        ax = plots.gaps(gap_record())
        assert "too low" in ax.get_legend().get_texts()[0].get_text()
        few = plots.gaps(gap_record(threshold=0.15))  # of few draws
        assert "k̂ > 0.15" in few.get_legend().get_texts()[0].get_text()
        record = gap_record()
        record.pareto_k = np.zeros(4)
        assert plots.gaps(record).get_legend() is None

    def test_the_gap_to_held_out_data_is_a_fourth_row(self):
        record = gap_record()
        record.generalization = estimate(-0.4, 0.2)
        ax = plots.gaps(record)
        assert ax.get_yticklabels()[0].get_text() == "train − held-out\nELBO"
        assert "−0.40" in [text.get_text() for text in ax.texts]

    def test_refuses_another_record(self):
        with pytest.raises(DataError, match=r"without approximation, .*inference_gaps returns"):
            plots.gaps(calibration_record())


class TestCalibration:
    def test_lines_are_differences_to_uniform_and_red_outside_the_band(self):
        from matplotlib.colors import to_hex

        record = calibration_record()
        ax = plots.calibration(record)
        uniform = np.arange(1, 11) / 10
        for line, ecdf in zip(ax.lines, record.ecdf, strict=False):
            np.testing.assert_allclose(line.get_xdata(), uniform)
            np.testing.assert_allclose(line.get_ydata(), ecdf.numpy() - uniform)
        colors = [to_hex(line.get_color()) for line in ax.lines[:2]]
        assert colors == [plots.style.BLUE, plots.style.RED]
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [-0.1, 0.1])  # 0.2 √¼
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == ["dimension 0", "dimension 1, outside", "uniform ranks,\n90 % band"]

    def test_many_dimensions_share_two_keys(self):
        texts = plots.calibration(calibration_record(9)).get_legend().get_texts()
        assert [text.get_text() for text in texts][:2] == [
            *("1 dimensions within", "8 dimensions outside")
        ]

    def test_coverage_is_drawn_against_the_claim(self):
        ax = plots.coverage(calibration_record())
        diagonal, points = ax.lines
        np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
        np.testing.assert_allclose(points.get_xdata(), [0.25, 0.5, 0.75])
        np.testing.assert_allclose(points.get_ydata(), np.array([0.25, 0.5, 0.75]) ** 2)
        bars = np.array([bar[:, 1] for bar in ax.collections[0].get_segments()])
        np.testing.assert_allclose(bars[:, 1] - bars[:, 0], 4 * 0.01)

    @pytest.mark.parametrize("draw", [plots.calibration, plots.coverage])
    def test_refuses_another_record(self, draw):
        with pytest.raises(DataError, match=r"what pyrovae.diagnostics.calibration returns"):
            draw(gap_record())

    def test_refuses_arrays_that_do_not_fit(self):
        record = calibration_record()
        record.band = record.band[1:]
        with pytest.raises(DataError, match=r"band has shape \(9, 2\).* needs \(10, 2\)"):
            plots.calibration(record)
        record.expected_coverage = [0.1]
        with pytest.raises(DataError, match="there are 3 levels"):
            plots.coverage(record)


class TestSeveralModels:
    def test_along_a_dashed_line_the_elbo_is_what_its_name_says(self):
        ax = plots.rate_distortion([1.0, 5.0], torch.tensor([40.0, 30.0]), labels=["a", "b"])
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 40], [5, 30]])
        dashed = [line.get_xydata() for line in ax.lines if line.get_linestyle() == "--"]
        totals = [line.sum(1) for line in dashed]
        assert len(totals) >= 3
        np.testing.assert_allclose([t[0] for t in totals], [t[1] for t in totals])
        named = {t.get_text(): sum(t.xy) for t in ax.texts if t.get_text().startswith("ELBO")}
        assert named
        for name, total in named.items():
            assert name == f"ELBO −{total:g}"
        assert [t.get_text() for t in ax.texts][:2] == ["a", "b"]

    def test_estimates_have_bars_of_two_standard_errors(self):
        ax = plots.rate_distortion([estimate(1.0, 0.1)], [estimate(9.0, np.nan)])
        across, up = (layer.get_segments()[0] for layer in ax.collections)
        np.testing.assert_allclose(across[:, 0], [0.8, 1.2])
        np.testing.assert_allclose(up[:, 1], [9, 9])
        assert "± 2 s.e." in ax.get_xlabel()

    def test_refuses_points_without_both(self):
        with pytest.raises(DataError, match=r"distortions has shape \(1,\), but there are 2 rates"):
            plots.rate_distortion([1, 2], [3])
        with pytest.raises(DataError, match=r"rates has shape \(0,\)"):
            plots.rate_distortion([], [])
        with pytest.raises(DataError, match="1 names were given for 2"):
            plots.rate_distortion([1, 2], [3, 4], labels=["a"])

    def test_the_best_is_at_the_top_and_bars_are_paired_errors(self):
        ax = plots.comparison(comparison_record())
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == [
            "StandardNormal\nlower bounds: 10 %",
            "a Gaussian mixture of 20\nlower bounds: 2 %",
            "VampPrior",
        ]
        points = [line for line in ax.lines if line.get_marker() == "o"]
        assert [float(line.get_xdata()[0]) for line in points] == [1.5, 0.3, 0.0]
        spans = [layer.get_segments()[0][:, 0] for layer in ax.collections]
        np.testing.assert_allclose(spans, [[1.3, 1.7], [-0.1, 0.7], [0, 0]])
        assert [line.get_markerfacecolor() for line in points][1:] == ["white", "white"]
        assert points[0].get_markerfacecolor() == plots.style.RED
        assert "log p(x) of the best: −20.000 ± 0.200" in ax.get_xlabel()

    def test_refuses_another_record(self):
        with pytest.raises(DataError, match="without rows"):
            plots.comparison(gap_record())


@pytest.mark.parametrize("name", plots.__all__)
def test_at_most_two_arguments_have_a_place(name):
    parameters = list(inspect.signature(getattr(plots, name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


PANELS = {
    "latent_scatter": (CODES, LABELS),
    "images": (X,),
    "reconstructions": (X, X),
    "traversals": (PLANE, VALUES),
    "latent_manifold": (PLANE, VALUES),
    "grid_posterior": (log_normal(MEAN, COVARIANCE), (Z1, Z2)),
    "kl_by_dimension": ([0.1, 0.2],),
    "pareto_k": (TestParetoK.K,),
    "gaps": (gap_record(),),
    "calibration": (calibration_record(),),
    "coverage": (calibration_record(),),
    "rate_distortion": ([1.0], [2.0]),
    "comparison": (comparison_record(),),
}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_is_drawn_where_it_was_asked_for_under_its_title(name):
    left, right = Figure().subplots(1, 2)
    assert getattr(plots, name)(*PANELS[name], ax=right, title="a title") is right
    assert right.get_title().startswith("a title")
    assert not left.has_data()
    assert len(left.figure.axes) == 2


def test_every_picture_is_a_panel_or_a_figure():
    assert set(plots.__all__) == {*PANELS, "training_curve", "training_monitor"}


@pytest.mark.parametrize(
    "axes",
    [
        plots.images(X),
        plots.images(X[:1]),
        plots.reconstructions(X, X),
        plots.latent_scatter(CODES, LABELS),
        plots.latent_scatter(CODES, LABELS, scales=np.ones((40, 5)), title="two\nlines"),
        plots.training_curve(history(1)).axes[0],
        plots.training_monitor(RECORDED).axes[3],
        plots.latent_manifold(PLANE, VALUES, title="the plane"),
        plots.traversals(PLANE[:2], VALUES, names=["a long name", "z2"]),
        plots.grid_posterior(log_normal(MEAN, COVARIANCE), (Z1, Z2), draws=[MEAN]),
        plots.kl_by_dimension(np.ones((3, 30)), names=[f"latent[{d}]" for d in range(30)]),
        plots.kl_by_dimension([0.1], [False]),
        plots.pareto_k(np.linspace(0, 2, 20_000), title="with a title"),
        plots.gaps(gap_record()),
        plots.calibration(calibration_record(9)),
        plots.coverage(calibration_record()),
        plots.rate_distortion([0.0, 1.0], [50.0, 20.0], labels=["a long name"] * 2, title="t"),
        plots.comparison(comparison_record(), title="priors"),
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

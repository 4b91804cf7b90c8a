"""No sentence on a report's page contradicts another, or its own numbers."""

import html
import math
import re

import pytest
import torch
from report_model import change, small_findings, small_model

from pyrovae.diagnostics import Estimate
from pyrovae.report.page import of_findings, render
from pyrovae.report.trials import Continued
from pyrovae.report.trust import trust
from pyrovae.report.verdicts import problems, verdicts

NONE = {section: [] for section in ("model", "data", "training", "belief", "failures")}
NUMBER = r"(-?\d+(?:\.\d+)?)"


def more(gain, error=0.05, learned=20.0):
    return Continued(Estimate(gain, error), 4.0, 500, learned)


def with_bounds(found, num):
    upper = found.evidence.upper.clone()
    upper[:num] = math.inf
    return change(found, evidence={"upper": upper})


def covering(found, share):
    coverage = torch.full_like(found.calibration.expected_coverage, share)
    return change(found, calibration={"expected_coverage": coverage})


def failing(found, num):
    return change(found, reliability={"is_reliable": torch.arange(60) >= num})


def gapped(found, family, encoder):
    parts = {"mean_approximation": family, "mean_amortization": encoder}
    parts["mean_total"] = family + encoder
    parts = {name: Estimate(value, 0.02, True) for name, value in parts.items()}
    return change(found, gaps=parts)


def silent(found, rate, idle):
    is_collapsed = torch.tensor([True] * idle + [False] * (2 - idle))
    found = change(found, held_out={"mean_kl": Estimate(rate, 0.005, True)})
    return change(found, collapse={"is_collapsed": is_collapsed})


def over_held_out(found, gap):
    ours = Estimate(found.held_out.mean_elbo.value + gap, 0.1)
    return change(found, training={"mean_elbo": ours})


def weighted(found, beta, unweighted=None):
    return found._replace(kl_weight=Estimate(beta, 0.02), unweighted=unweighted)


# what is changed of the findings on a model whose training is over
COMBINATIONS = {
    "nothing": lambda f: f,
    "gain beyond noise": lambda f: f._replace(continued=more(0.4)),
    "large gain": lambda f: f._replace(continued=more(9.0)),
    "large gain after nothing": lambda f: f._replace(continued=more(9.0, learned=-5.0)),
    "loss by training": lambda f: over_held_out(f._replace(continued=more(-0.5)), 60.0),
    "gain of an overfitted model": lambda f: over_held_out(f._replace(continued=more(0.5)), 60.0),
    "slightly overfitted": lambda f: over_held_out(f, 3.0),
    "collapse": lambda f: silent(f, 0.03, 2),
    "collapse without idle dimensions": lambda f: silent(f, 0.03, 0),
    "idle dimensions that inform": lambda f: silent(f, 0.9, 2),
    "one idle dimension": lambda f: silent(f, 2.0, 1),
    "over-regularized, β helps": lambda f: weighted(f, 3.0, more(2.0)),
    "over-regularized, β does not": lambda f: weighted(f, 3.0, more(-2.0)),
    "narrow and miscalibrated": lambda f: covering(weighted(f, 0.1), 0.2),
    "68 % coverage": lambda f: covering(f, 0.682),
    "coverage too wide": lambda f: covering(f, 0.97),
    "few bounds, failing k̂": lambda f: failing(with_bounds(f, 5), 30),
    "mostly bounds": lambda f: failing(with_bounds(f, 50), 60),
    "gap that rounds": lambda f: gapped(f, 0.094, 0.894),
    "gap of the family": lambda f: gapped(f, 2.0, 0.004),
    "all at once": lambda f: covering(
        over_held_out(failing(weighted(f._replace(continued=more(0.5)), 3.0), 60), 60.0), 0.1
    ),
    "unmeasured": lambda f: f._replace(
        gaps=None, calibration=None, prior_gain=None, continued=None, rank_distance=None
    ),
    "wrong likelihood, misfit": lambda f: f._replace(
        rank_distance=Estimate(0.2, 0.01, True), prior_gain=Estimate(2.0, 0.1)
    ),
}


@pytest.fixture(scope="module", params=COMBINATIONS)
def case(request):
    ripe = small_findings()._replace(continued=more(0.0), kl_weight=Estimate(1.0, 0.02))
    found = COMBINATIONS[request.param](ripe)
    judged = verdicts(found)
    about = of_findings(small_model(), found, None, facts={})
    page = render(about, small_model(), found=found, judged=judged, pictures=NONE)
    text = html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("−", "-")
    return found, {v.name: v for v in judged}, re.sub(r"\s+", " ", text)


def lede(text):
    return text[: text.index("The model Training Can I trust it?")]


def test_the_headline_says_what_the_verdicts_say(case):
    _, judged, text = case
    named, head = problems(tuple(judged.values())), lede(text)
    assert ("Something is wrong" in head) == bool(named)
    assert all(name in head for name in named)
    assert "no sign" not in head.lower()
    for use in trust(tuple(judged.values())):
        statuses = {verdict.status for verdict in use.reasons}
        assert statuses <= {"yes": set(), "with care": {"look"}, "no": {"problem"}}.get(
            use.answer, {"unknown"}
        )
        assert use.use in head
        assert all(verdict.name in head for verdict in use.reasons)


def test_nothing_is_trusted_against_a_problem(case):
    _, judged, _ = case
    trusted = {use.use for use in trust(tuple(judged.values())) if use.answer == "yes"}
    for name in ("calibration", "guide too narrow", "over-regularized", "posterior collapse"):
        assert judged[name].status != "problem" or "q(z|x) as a posterior" not in trusted
    for name in ("wrong likelihood", "posterior collapse", "undertrained"):
        assert judged[name].status != "problem" or "samples" not in trusted


def test_training_is_over_only_where_a_copy_did_not_gain(case):
    found, judged, text = case
    verdict = judged["undertrained"]
    gained = found.continued and found.continued.gain.value > 3 * found.continued.gain.std_error
    assert ("did not gain" in text) == (verdict.status == "fine")
    assert not (gained and verdict.status == "fine")
    assert "converged" not in text


def test_earlier_stopping_is_advised_only_where_training_hurt(case):
    found, judged, _ = case
    advice = judged["overfitting"].advice
    if "stop earlier" in advice:
        assert found.continued.gain.value < 0
    if "would not help" in advice:
        assert found.continued.gain.value > 0


def test_advice_on_beta_was_tried(case):
    found, _, text = case
    if "Train with β = 1" in text:
        assert (found.unweighted or found.continued).gain.value > 0


def test_a_share_is_a_share(case):
    *_, text = case
    for share in re.findall(rf"{NUMBER} % of all that it has learned", text):
        assert 0 < float(share) <= 100


def test_inactive_dimensions_agree_with_the_kl(case):
    found, judged, text = case
    verdict = judged["posterior collapse"]
    if verdict.status == "problem":
        assert "inactive" not in verdict.number
        assert "carries information" not in text
        assert found.held_out.mean_kl.value < 0.2
    if "Every latent dimension carries information" in verdict.meaning:
        assert verdict.number.startswith("0 of")
    if "the others do" in verdict.meaning:
        idle, total = map(int, re.match(r"(\d+) of (\d+)", verdict.number).groups())
        assert 0 < idle < total


def test_the_weight_of_the_kl_is_not_both_too_large_and_too_small(case):
    _, judged, _ = case
    sides = {judged[name].status for name in ("over-regularized", "guide too narrow")}
    assert sides in ({"fine"}, {"unknown"}) or ("fine" in sides and len(sides) == 2)


def test_gaps_add_up_as_printed(case):
    _, judged, _ = case
    number = judged["inference gap"].number
    if number:
        values = re.findall(NUMBER, re.sub(r"± \S+", "", number))
        total, family, encoder = map(float, values)
        assert math.isclose(total, family + encoder, abs_tol=1e-9)


def test_the_mean_log_px_is_one_number(case):
    found, judged, text = case
    stated = float(re.search(NUMBER, judged["log p(x)"].number).group())
    assert math.isclose(stated, found.evidence.log_px.mean().item(), abs_tol=0.006)
    assert f"{stated:.2f}" in lede(text)


def test_calibration_holds_only_near_its_nominal_level(case):
    _, judged, text = case
    verdict = judged["calibration"]
    if not verdict.number:
        return
    nominal, held, error = (float(n) for n in re.findall(NUMBER, verdict.number))
    assert ("hold what they promise" in text) == (verdict.status == "fine")
    if verdict.status == "fine":
        assert abs(held - nominal) <= 3.1 * error
    assert ("miss the truth too often" in text) == (held < nominal - 3 * error)
    assert ("wider than they promise" in text) == (held > nominal + 3 * error)
    if judged["guide too narrow"].status == "fine":
        assert "too narrow" not in verdict.meaning + verdict.advice


def test_the_gap_is_that_of_the_log_px_and_the_elbo_on_the_page():
    found = small_findings()
    gap = found.evidence.log_px.mean() - found.held_out.mean_elbo.value  # of all 60 data
    # 5 errors of a mean of 10 draws per datum, of a few nats each
    assert abs(found.gaps.mean_total.value - gap) < 5 * 2.0 / (10 * 60) ** 0.5


def test_bounds_are_marked_wherever_log_px_is_shown(case):
    found, judged, text = case
    has_bounds = bool(found.evidence.upper.isinf().any())
    assert (judged["log p(x)"].status == "fine") == (not has_bounds)
    assert ("≥" in lede(text)) == has_bounds
    assert ("only a lower bound" in text) == has_bounds
    assert ("Each log p(x) has a 95 % interval" in text) == (not has_bounds)


def test_failing_weights_are_those_counted(case):
    found, judged, _ = case
    verdict = judged["encoder misses posteriors"]
    share = 100 * (~found.reliability.is_reliable).double().mean().item()
    assert verdict.number.startswith(f"{share:.1f} ")
    if "an interval for all of them" in verdict.advice:
        assert not found.evidence.upper[~found.reliability.is_reliable].isinf().any()


def test_what_was_not_measured_is_not_pointed_at(case):
    found, judged, _ = case
    if found.gaps is None:
        assert "gap" not in judged["encoder misses posteriors"].advice
    for verdict in judged.values():
        assert verdict.status != "unknown" or not verdict.advice


def test_there_are_twenty_combinations():
    assert len(COMBINATIONS) >= 20

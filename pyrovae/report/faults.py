"""What is wrong with a model, each fault by a name of its own.

    undertrained        more steps gain more than a twentieth of all that has been learned
    posterior collapse  every latent dimension ignores x, or the total KL is below 0.1 nats
    over-regularized    β̂ > 1.5: the encoder is optimal for more KL than the ELBO has
    guide too narrow    β̂ < 1/1.5: its widths are those of less KL than the ELBO has
    wrong likelihood    x varies about its code otherwise than p(x|z) says, D > 0.07
    overfitting         training data are scored better by a quarter of the spread over data

Thresholds are conventions, and β̂ and D are defined in `report.encoder` and `report.likelihood`.
Only measurements decide; the β of a card is reported. Advice is given where a copy of the model
has tried it (`report.trials`); what was not tried is said to be so.
"""

import math

from pyrovae.diagnostics import Estimate
from pyrovae.report.findings import Findings
from pyrovae.report.levels import Verdict, exceeds, is_below, level, with_error
from pyrovae.report.trials import Continued

UNDERTRAINED = 0.05  # of what has been learned, in 500 steps
LEAST_SPREAD = 0.02  # … and of the standard deviation over data, where nothing has been learned
UNDERTRAINED_SPREAD = 0.1  # of it, where what has been learned is unknown
COLLAPSED = 0.1  # total KL, nats
OVER_REGULARIZED = 1.5  # β̂
WRONG_LIKELIHOOD = (0.04, 0.07)  # D: look, problem
OVERFITTED = 0.25  # of the standard deviation over data of the ELBO


def undertrained(found: Findings) -> Verdict:
    """Judge whether more training would still gain much on held-out data."""
    name, more = "undertrained", found.continued
    if more is None:
        meaning = "A copy of the model could not be trained further."
        if found.training is None:
            meaning = "Not judged: the training data were not given."
        return Verdict(name, "unknown", "", meaning)
    number, gain = _gained(more), more.gain
    share = _share_of_learned(more)
    status = level(gain, look=0.0, problem=_large_gain(more))
    if status == "problem":
        meaning = "Training ended too early: a copy trained further gained much on held-out data"
        return Verdict(name, status, number, f"{meaning}{share}.", "First of all, train longer.")
    if exceeds(gain, 0.0):
        meaning = "Training is not quite over: a copy trained further gained on held-out data"
        return Verdict(name, status, number, f"{meaning}{share}.", "Train longer.")
    if status == "look":
        meaning = "So few held-out data do not show whether a copy trained further gained."
        return Verdict(name, status, number, meaning)
    meaning = "A copy trained further did not gain on held-out data beyond the noise."
    return Verdict(name, status, number, meaning)


def _gained(more: Continued) -> str:
    gain = more.gain
    return f"{gain.value:+.2f} ± {gain.std_error:.2f} nats per datum in {more.num_steps} steps"


def _large_gain(more: Continued) -> float:
    """Return the gain, nats, above which a model is undertrained."""
    if math.isnan(more.learned):
        return UNDERTRAINED_SPREAD * more.spread
    return max(UNDERTRAINED * (more.learned + more.gain.value), LEAST_SPREAD * more.spread)


def _share_of_learned(more: Continued) -> str:
    """Say what share of all that the copy has learned it learned in these steps."""
    total = more.learned + more.gain.value
    if not total > 0:  # or NaN
        return ""
    share = min(100 * more.gain.value / total, 100)
    return f", {share:.1f} % of all that it has learned beyond a model without a latent"


def posterior_collapse(found: Findings) -> Verdict:
    """Judge whether the decoder ignores z."""
    name = "posterior collapse"
    if found.collapse is None:
        return Verdict(name, "unknown", "", "The program has no latent of a single datum.")
    idle, total = len(found.collapse.collapsed), len(found.collapse.names)
    rate = f"KL {with_error(found.held_out.mean_kl)} nats"
    if is_empty(found):
        meaning = (
            "The model ignores z: q(z|x) nearly equals the prior for every x, so codes are "
            "uninformative and all samples look alike."
        )
        number = f"{rate} in all {total} latent dimensions together"
        return Verdict(name, "problem", number, meaning, _with_plain_elbo(found))
    number = f"{idle} of {total} latent dimensions inactive; {rate}"
    if idle == total:
        meaning = "Each dimension alone is near the prior, but together they carry information."
        return Verdict(name, "look", number, meaning)
    if idle:
        meaning = "The inactive latent dimensions carry no information about x; the others do."
        return Verdict(name, "fine", number, meaning)
    return Verdict(name, "fine", number, "Every latent dimension carries information about x.")


def is_empty(found: Findings) -> bool:
    """Return whether z carries no information about x."""
    is_idle = found.collapse is not None and bool(found.collapse.is_collapsed.all())
    scale = len(found.collapse.names) if is_idle else 1  # each dimension is near the prior
    return is_below(found.held_out.mean_kl, COLLAPSED * scale)


def over_regularized(found: Findings, *, beta: float | None = None) -> Verdict:
    """Judge whether the encoder weights the KL more than the ELBO does."""
    name, weight = "over-regularized", found.kl_weight
    note = "" if beta is None or beta == 1 else f" The card says that β was {beta:g}."
    if math.isnan(weight.value) or is_empty(found):
        return _without_weight(name, note)
    status = level(weight, look=OVER_REGULARIZED, problem=OVER_REGULARIZED)
    number = f"β of the encoder = {with_error(weight)}; the ELBO has 1"
    meaning = f"The encoder does not weight the KL more than the ELBO does.{note}"
    if status == "problem":
        meaning = (
            "The codes carry less information about x than the ELBO rewards: the encoder is "
            f"optimal for a KL weighted by {weight.value:.1f}.{note}"
        )
        return Verdict(name, status, number, meaning, _with_plain_elbo(found))
    if status == "look":
        meaning = f"The encoder may weight the KL more than the ELBO does.{note}"
    return Verdict(name, status, number, meaning)


def guide_too_narrow(found: Findings) -> Verdict:
    """Judge whether q(z|x) is narrower than the ELBO makes the guides of its family."""
    name, weight = "guide too narrow", found.kl_weight
    if math.isnan(weight.value) or is_empty(found):
        return _without_weight(name, "")
    upside_down = Estimate(-weight.value, weight.std_error)
    limit = -1 / OVER_REGULARIZED
    status = level(upside_down, look=limit, problem=limit)
    number = f"β of the encoder = {with_error(weight)}; the ELBO has 1"
    meaning = "On average the widths of q(z|x) are not below those that maximize the ELBO."
    if status == "problem":
        meaning = (
            "The guide is too narrow for its decoder: a wider q(z|x) has a higher ELBO. Its widths "
            "are held fixed or bounded, or were trained with a smaller weight of the KL."
        )
        advice = _with_plain_elbo(found) if found.unweighted else "Let the encoder learn its width."
        return Verdict(name, status, number, meaning, advice)
    if status == "look":
        meaning = "On average the widths of q(z|x) may be below those that maximize the ELBO."
    return Verdict(name, status, number, meaning)


def _without_weight(name: str, note: str) -> Verdict:
    meaning = "Defined for a VAE with active latents on the real line." + note
    return Verdict(name, "unknown", "β of the encoder: not defined", meaning)


def _with_plain_elbo(found: Findings) -> str:
    """Return what came of training a copy further with β = 1."""
    more = found.unweighted or found.continued
    if more is None:
        return "Not tried here: β = 1, a warm-up of the KL, free bits."
    tried = f"A copy trained further with β = 1: {_gained(more)}."
    if exceeds(more.gain, 0.0):
        return f"{tried} Train with β = 1."
    return f"{tried} That alone does not repair it; not tried here: a warm-up of the KL, free bits."


def wrong_likelihood(found: Findings) -> Verdict:
    """Judge whether x varies about its code as p(x|z) says."""
    name, distance = "wrong likelihood", found.rank_distance
    if distance is None or math.isnan(distance.value):
        return Verdict(name, "unknown", "", "Not measured: such data cannot be replicated.")
    look, problem = WRONG_LIKELIHOOD
    status = level(distance, look=look, problem=problem)
    number = (
        f"ranks of x among replicates: shares off by {distance.value:.3f} ± "
        f"{distance.std_error:.3f} at most"
    )
    meaning = "Given its code, x varies about as p(x|z) says."
    if status == "problem":
        meaning = "Given its code, x varies otherwise than p(x|z) says: in width, shape or support."
        advice = "Choose another likelihood, or learn its scale (not tried here)."
        return Verdict(name, status, number, meaning, advice)
    if status == "look":
        meaning = "Given its code, x may vary otherwise than p(x|z) says, in width or shape."
    return Verdict(name, status, number, meaning)


def overfitting(found: Findings) -> Verdict:
    """Judge whether the ELBO of training data is far above that of held-out data."""
    if found.training is None:
        meaning = "Not judged: the training data were not given."
        return Verdict("overfitting", "unknown", "", meaning)
    name, ours, theirs = "overfitting", found.training.mean_elbo, found.held_out.mean_elbo
    error = math.hypot(ours.std_error, theirs.std_error)
    gap = Estimate(ours.value - theirs.value, error)
    number = f"{gap.value:+.2f} ± {error:.2f} nats of training over held-out ELBO"
    status = level(gap, look=0.0, problem=OVERFITTED * found.held_out.elbo.std().item())
    if status == "problem":
        meaning = "The model fits its training data much better than new data."
        return Verdict(name, status, number, meaning, _stopped_earlier(found))
    if exceeds(gap, 0.0):
        meaning = "Training data are scored better than held-out data."
        return Verdict(name, status, number, meaning, _stopped_earlier(found))
    if status == "look":
        meaning = "So few held-out data do not exclude overfitting."
        return Verdict(name, status, number, meaning)
    meaning = "Held-out data are scored as well as training data, up to the noise."
    return Verdict(name, status, number, meaning)


def _stopped_earlier(found: Findings) -> str:
    """Return whether a copy trained further shows that stopping earlier would help."""
    more = found.continued
    if more is None:
        return ""
    if is_below(more.gain, 0.0):
        return f"More training makes it worse ({_gained(more)}): stop earlier, by validation data."
    if exceeds(more.gain, 0.0):
        return f"Stopping earlier would not help: more training gains ({_gained(more)})."
    return "A copy trained further did not get worse: nothing shows that stopping earlier helps."

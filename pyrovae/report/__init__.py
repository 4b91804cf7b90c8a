"""A page about a trained model that says whether to trust it.

    card        the run's summary.json, read and checked
    encoder     the weight of the KL that an encoder was trained with, estimated from it
    likelihood  whether x varies about its code as p(x|z) says
    trials      copies of a model trained further, without a latent, with another prior
    findings    the numbers: one pass over a model and its data
    levels      fine, look or problem: a test of a number against its error
    faults, limits    readings of the numbers, each a named condition with number, error and advice
    verdicts, trust   all of them, and what a model may be used for
    graph, figures    plots
    page        HTML from all of these and `template.html`
    writing     `write_report`, the whole of it for any program

Only `findings` and `figures` use the model; verdicts are pure functions of the numbers.
"""

TERMS = {  # numbers of a card, each with a value and two errors
    "elbo": "ELBO (higher is better)",
    "reconstruction": "reconstruction, −E_q[log p(x|z)]",
    "kl": "KL(q(z|x) ‖ p(z))",
}

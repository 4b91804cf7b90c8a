"""A page about a trained model that says whether to trust it.

    card        the run's summary.json, read and checked
    encoder     the weight of the KL that an encoder was trained with, estimated from it
    findings    the numbers: one pass over a model and its data
    verdicts    readings of the numbers, each a named condition with number, error and advice
    graph, figures    plots
    page        HTML from all of these and `template.html`
    writing     `write_report`, the whole of it for any program

Only `findings` and `figures` use the model; `verdicts` is a pure function of the numbers.
"""

TERMS = {  # numbers of a card, each with a value and two errors
    "elbo": "ELBO (higher is better)",
    "reconstruction": "reconstruction, −E_q[log p(x|z)]",
    "kl": "KL(q(z|x) ‖ p(z))",
}

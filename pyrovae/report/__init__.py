"""A page about a trained model that says whether to believe it.

    card        the run's summary.json, read and checked
    encoder     what weight of the KL an encoder was trained for, read off the encoder
    findings    the numbers: one pass over a model and its data
    verdicts    readings of the numbers, each a named condition with number, error and advice
    graph, figures    pictures
    page        HTML from all of these and `template.html`

Only `findings` and `figures` look at the model; `verdicts` is a pure function of the numbers.
"""

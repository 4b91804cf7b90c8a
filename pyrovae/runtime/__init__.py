"""Machinery that would serve any torch module: files, run folders, processes, signals, graphs.

Nothing here knows what a density or a Pyro program is: an architecture test forbids
`pyro.distributions` and every package that does.
"""

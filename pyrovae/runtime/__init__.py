"""Machinery that would serve any torch module: files, run folders, processes, signals, graphs.

Nothing here knows what a density is, or what a program of Pyro is: an architecture test forbids
`pyro.distributions` and every room that does.
"""

"""Tracing, replaying and chunking of models and guides, which no other subpackage does.

terms       log p(z), log p(x|z), log q(z|x) per draw and datum: the one primitive
joint       a program at fixed data, as functions of its latents
draws       numbers from the traces of all draws of all data, within a byte budget
vectorized  many draws in the fastest way that gives the right numbers
marginal    discrete latents that the guide leaves out, summed out
summed      a program without the discrete latents of its guide
replay      the sites of a program, and a program at given latents
repeated    the same, without handlers once it is called often
replicates  replicates of the data
simulation  data from the model, with their latents
conditional a program given its global latents
chunking    the number of draws and data computed at a time
importance  importance weights, drawn in chunks
pareto      the shape of their tail
hamiltonian the transition kernel that AIS and HMC share
"""

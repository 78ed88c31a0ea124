"""Files of weights, from PyTorch or Jittor, to arrays and back. A file is read as data: nothing in
it is ever run, and no class that it names is imported.

files             a run's checkpoint: save it, find the latest whole one, load it into a network
torch_reader      reads PyTorch's and Jittor's files into NumPy without either
plain_pickle      the unpickler behind it, which refuses everything but plain values
pickle_calls      what a pickle may call, and what is done instead
pickled_values    what a pickle describes, turned into values and arrays
budget            how much a file may unfold to
"""

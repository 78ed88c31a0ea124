"""Building blocks of networks in Jittor, fast on a CPU. ``layers`` have gradients, for training;
``inference`` has none. Knows no network that is built of them.

layers           layers and losses with gradients
layer_kernels    the CPU kernels with gradients that ``layers`` uses
inference        operations without gradients, on the CPU by kernels of their own
inference_plain  the same operations in plain Jittor, for CUDA
cpp              runs a C++ function of a header file as a Jittor operation
arena            one block of memory for the arrays of a training network
kernels/         all C++, in header files
"""

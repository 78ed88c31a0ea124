"""Layers and operations of networks, fast on a CPU.

::

    layers           layers and losses with gradients, for training
    layer_kernels    the CPU kernels with gradients that ``layers`` uses
    inference        operations without gradients, on the CPU by kernels of their own
    inference_plain  the same operations in plain Jittor, for CUDA
    cpp              runs a C++ function of a header file as a Jittor operation
    arena            one block of memory for the arrays of a training network
    kernels/         all C++, in header files
"""

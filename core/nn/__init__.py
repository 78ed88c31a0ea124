"""Building blocks of networks in Jittor. ``layers`` have gradients, for training; ``inference`` has
none, and is fast on a CPU. Knows no network that is built of them.

layers             batch norm, pooling, resizing and losses with gradients, with PyTorch's rules
layer_kernels      CPU kernels, with gradients, behind ``layers``
inference          products, norms, attention and convolution without gradients
inference_plain    the same operations in plain Jittor, for CUDA and as the test's judge
cpp                runs C++ from a header file as a Jittor operation
arena              one block of memory for Jittor's arrays during training
kernels/           C++ sources of the kernels
"""

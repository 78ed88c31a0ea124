"""Time and memory of this project beside the official PyTorch code. Not needed to run a pipeline;
no test depends on a time.

__main__           the command line, ``python -m benchmarks``
compare            runs the sides of a case in turns and reports both
side               one side of a case, in its own process
inputs             the same arrays for both sides
sam_cases          Segment Anything
pass_cases         training steps of PASS
torch_pass         the other side of these, in plain PyTorch
evaluator_cases    the evaluator
kmeans_cases       k-means
shims              stand-ins for what the official code imports
"""

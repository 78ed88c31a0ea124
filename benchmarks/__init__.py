"""Time and memory of this project beside the official PyTorch code. Not needed to run a pipeline;
no test depends on a time.

__main__           the command line, ``python -m benchmarks``
cases              what a case and its sides are
compare            runs the sides of a case in turns
report             the figures as JSON and as Markdown
machine            processor, cores, versions and load
side               one side of a case, in its own process
inputs             the same arrays for both sides
sam_cases          Segment Anything
sam_models         its models, with the same weights on both sides
pass_cases         training steps of PASS
torch_pass         the other side of these, in plain PyTorch
evaluator_cases    the evaluator
onnx_encoder       an image encoder of the official code in ONNX Runtime
shims              stand-ins for what the official code imports
"""

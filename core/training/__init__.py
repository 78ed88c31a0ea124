"""How a network is trained, whatever it is. The loop saves itself, and after a kill it goes on with
the same losses; what is done with a batch, a stage's task says.

loop       the training loop: log, checkpoints, resume; Task, what a stage adds to it
stage      what training stages share: checks before the start, plan, loader, the run
optim      SGD with momentum and LARC, and AdamW
descent    what all optimisers share: groups of parameters, accumulation, clipping, their state
schedules  how the learning rate changes: cosine, poly, steps, warm-up
options    how often to save and log; no result depends on it
log        lines of means for the JSONL log, the screen and the sinks
sinks      TensorBoard and Weights & Biases as receivers of the log
kernels/   the C++ of the updates
"""

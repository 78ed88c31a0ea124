"""How a network is trained, whatever it is. The loop saves itself, and after a kill it goes on with
the same losses; what a batch's loss is, a stage's task says.

loop       the training loop: rate, log, checkpoints, resume
optim      SGD with momentum and LARC, and the cosine schedule
stage      what training stages share: checks before the start, plan, loader
options    how often to save and log; no result depends on it
log        lines of means for the JSONL log, the screen and the sinks
sinks      TensorBoard and Weights & Biases as receivers of the log
"""

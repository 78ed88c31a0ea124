"""The command ``doctor``: what would keep a run from working here, and what mends it. Changes
nothing on the machine.

command     the command line, and the list of findings
checks      each check of the machine: Python, compiler, memory, disk, weights
gpu         whether Jittor can use the GPU
data        whether the data set has the shape that a preset expects
estimate    time and memory of each stage, from measured steps
measure     measures training steps and masks in a process of their own
"""

"""What a pipeline is, so that every tool can serve any of them. A pipeline states its facts in its
own ``pipeline.py`` and ``paths.py``; this package knows no stage by name.

stage      a stage and a pipeline as tables of facts: names, folders, flags, costs
folders    where things lie in a run folder and in a result folder
origin     where a product comes from: the chain of stages, weights and masks behind it
label_origin  the same of label maps, kept in their ledger
inputs     which file a stage starts from: the user's, the run's own or a published one
rehearsal  what a stage hands to the doctor, to be measured
presets    the configuration of a tool: a preset's, or that of a trained network
times      the table of wall-clock seconds in a run folder
"""

"""Weakly supervised semantic segmentation, from image labels (P-NOC). So far its first stage.

__main__    the command line
pipeline    the table of stages
config      all settings, a dataclass a stage
presets     what a data set or a purpose changes
paths       where everything lies in a run folder
classifier  the classifier of images, whose activation maps the later stages start from
"""

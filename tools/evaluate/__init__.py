"""Scores of label maps against masks, on a data set of any layout.

command  ``python -m NAME evaluate``
folder   a folder of label maps: scores, and the curve over thresholds
compare  what a change did, class by class and image by image
table    scores as text and as JSON
"""

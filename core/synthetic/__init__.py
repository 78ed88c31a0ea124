"""A data set that is drawn, with exact masks, to try a whole pipeline without a download. The same
seed gives the same bytes on every machine.

imagenet_s    writes the data set as folders in the ImageNet-S layout
scenes        one picture: objects on a background, and their mask
shapes        outlines and textures, in whole numbers
"""

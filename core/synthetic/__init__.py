"""Data sets that are drawn, with exact masks, to try a whole pipeline without a download. The same
seed gives the same bytes on every machine.

imagenet_s    a data set in the ImageNet-S layout
voc           one in the VOC layout, with annotations, for weak supervision
generated     makes a data set whole or not at all, and again only where its settings differ
scenes        one picture: objects on a background, and their mask
shapes        outlines and textures, in whole numbers
"""

"""Generated data sets, for tests and for trying a pipeline without a download.

shapes      outlines and textures, in whole numbers
scenes      one picture with its exact mask
generated   a generated set is whole or not there, and made again only where settings differ
imagenet_s  a set in the ImageNet-S layout: one class an image
voc         a set in the VOC layout: up to three classes an image
"""

"""From files to arrays and batches, by numpy alone. Knows no network and no method; an image's key
(``<class folder>/<stem>``) names it everywhere else.

imagenet_s    which images and masks a data set has, in the ImageNet-S layout
images        decodes an image file to uint8 RGB, the same for every stage
label_maps    label maps and their PNG form; the id that is ignored
rle           masks as run lengths, and the record of a mask
crops         resizing, normalising, random crops and colours
datasets      what one training sample is
loader        batches of samples, the same for any number of worker processes
workers       the processes that make samples beside the training
"""

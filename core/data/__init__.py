"""From files to arrays and batches, by numpy alone. Knows no network and no method; the key of an
image, which its layout gives it, names it everywhere else.

layout        what a data set answers in any layout, and which layout a folder has
imagenet_s    the ImageNet-S layout: a folder of images and one of masks for each split
voc           the layout of Pascal VOC: lists of the splits, masks with a palette
coco          COCO 2014 in VOC form
image_labels  which classes an image shows, from annotations and label files
items         one image of a data set, and its key
images        decodes an image file to uint8 RGB, the same for every stage
label_maps    label maps and their PNG form; the id that is ignored
level_maps    label maps without threshold, and the level of each pixel
rle           masks as run lengths, and the record of a mask
crops         resizing, normalising, random crops and colours
datasets      what one training sample is
loader        batches of samples, the same for any number of worker processes
workers       the processes that make samples beside the training
"""

"""Data sets, images and label maps.

layout        what a data set is, whatever its folders; tells the three layouts apart
imagenet_s    the ImageNet-S layout: class folders, masks beside the splits
voc           the layout of Pascal VOC: lists, palette masks, annotations
coco          COCO 2014 in VOC form
items         one image of a data set
image_labels  which classes an image shows, from annotations and label files
images        the one image decoder
label_maps    label maps and their PNG form
rle           run-length encoded masks
crops         geometry and colour of training samples
datasets      what one sample of a stage is
loader        batches of samples, prepared ahead
workers       processes that read samples
"""

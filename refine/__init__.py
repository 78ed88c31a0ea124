"""Better label maps from masks, for the segmenter of any pipeline. Knows no pipeline: what loads
the network is named to it.

settings      all settings that this package reads, and their rules
mask_sources  masks of images, by SAM or superpixels, made once and then read from a store
superpixels   masks that follow colours, for machines without SAM's weights
fill_masks    the command that fills the mask store of a split
segmenter     a fine-tuned network at work: logits and label map of an image
vote          the rule: what label a mask takes, and what is done where no mask helps
one_image     one image from file to refined label map
supervised    the same in a child process that is watched
label_split   all images of a split: what is left, who makes it, which failed
"""

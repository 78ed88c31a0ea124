"""Better label maps, from class-agnostic masks and a segmenter's logits. Knows no pipeline: whoever
calls it brings a checkpoint, images and settings.

settings        the settings of masks, prediction and refinement
mask_sources    masks of an image by SAM or superpixels, kept and made once
superpixels     the stand-in for SAM where no weights can be had
fill_masks      makes the masks of a whole split ahead of time
segmenter       a trained segmenter's logits and label map of an image
vote            the rule by which masks vote on a label map
one_image       one image from its file to its refined label map
supervised      the same in a watched process, with a second attempt
"""

"""Unsupervised semantic segmentation: PASS, with SAM for pseudo labels and refinement, from images
without labels to result.zip. What other pipelines can use lies in the other rooms.

__main__             the command line, ``python -m uss``
pipeline             the table of stages; what tools know of this pipeline, they know from there
config               every hyper-parameter, a dataclass a stage
presets              what each data set and purpose changes
paths                the folders of a run, and which file a stage starts from
pretrain             step 1: self-supervised pretraining
pixel_attention      step 2.1: attention on the frozen trunk
cluster              step 2.2: k-means of attended features
pseudo_labels        steps 2.3 and 2.4: pseudo labels, and their threshold
finetune             step 3: the segmenter, on pseudo labels
predict              step 4: label maps of a split, zipped
predict_refined      the job of test.py: predict, refine, zip
result_archive       what test.py makes of its label maps: scores, match, result.zip
distance_matching    scores a trunk by its nearest labelled regions
views                the crops that self-supervised training compares
objectives           the losses of the self-supervised stages
networks             networks of finished stages, from their checkpoints
origins              where clusters and labels come from: records, and what they say
mask_labels          labels averaged over masks, on a small grid
attention_maps       attention of images, for report and pictures
"""

"""The stages of unsupervised semantic segmentation, from images to result.zip."""

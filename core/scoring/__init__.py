"""How good label maps are. Works on arrays; knows no folder of predictions (``tools.evaluate``
does) and no network.

metrics            IoU, boundary IoU, size bins, accuracy and F-measure
matching           which cluster is which class, and the match file
threshold_curve    mIoU at every background threshold, in one pass
"""

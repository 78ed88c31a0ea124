"""The command ``data``: one's own images as a data set. Images are read and linked, never changed.

command      the command line, and the split into train, validation and test
check        what is wrong with a folder of images before training
check_lists  what is wrong with lists, annotations and masks in VOC or COCO form
problems     what both find: counts of each split, and problems to mend
"""

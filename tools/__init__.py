"""What a user does with a run of any pipeline: check, watch, score, show, hand in. A tool is handed
what it serves and imports no pipeline.

command_line  the commands of a pipeline, from its table of stages
flags         how the flags that several commands take are spelt
data          checks a data set, or makes one of a folder of images
doctor        is this machine fit, and how long would a preset take
evaluate      scores predictions, and compares two folders of them
report        one page about a run, for a browser
submission    makes and checks result.zip
watch         how far a run is, while it runs
summary       scores, times and a picture sheet of a finished run
visualize     predictions, masks or attention over images, as PNG files
weights       fetches SAM weights and lists what is at hand
"""

"""The command ``evaluate``: how good a folder of predictions is. The counting itself is in
``core.scoring``.

command    the command line
folder     scores a folder of predictions, and its threshold curve
compare    what changed between two folders, by class and by image
table      the scores as text and as JSON values
"""

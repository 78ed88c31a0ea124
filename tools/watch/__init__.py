"""The command ``watch``: how far a run is, from any machine that sees its folder. It only
reads, but for an empty file now and then by which it asks a file system for its time.

command    the command line, and the page in a terminal
state      the state of each stage, from the files that it leaves
clock      how long ago files were written, by the clock that stamped them
serve      state and report in a browser
"""

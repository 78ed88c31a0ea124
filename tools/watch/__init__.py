"""The command ``watch``: how far a run is, from any machine that sees its folder. It only reads.

command    the command line, and the page in a terminal
state      the state of each stage, from the files that it leaves
serve      state and report in a browser
"""

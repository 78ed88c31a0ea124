"""The command ``submission``: the archive to hand in. Knows label maps and a match, and not how
they were made.

command    the command line
archive    builds result.zip and its method.txt
check      what is wrong with an archive
disclosure  what is said about how label maps came about
results    from finished label maps to scores, match and archive
"""

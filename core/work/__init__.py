"""Work on many items by many processes, on one machine or several, over a shared folder and nothing
else. Whatever is killed, an item is finished once and never half. Knows no method: a caller says
what is made of an item.

worklist      a result file an item: made once, under known settings, resumed after a stop
claims        who is at an item now, over a shared folder
ledger        which results are finished, and the settings that made them
results       whether result files are the recorded ones
fingerprints  a set of millions of values in little memory
sharing       how processes go through one list without waiting for each other
settings      in which settings two runs differ, in words
child         a process for work that may die, hang or grow; it is watched and started anew
pool          many small things on several cores, results in order
blocks        rows of features of many items on disk, a block of items at a time
mask_store    masks of images on disk, by weights and settings, shared by all runs
"""

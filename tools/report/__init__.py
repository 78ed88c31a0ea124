"""The command ``report``: one HTML file about a run that needs nothing else. It reads what stages
have left and asks no stage anything.

command         the command line
run_files       which files the report is made of
collect         everything that the page shows, as one value
label_scores    what label maps show, and how right they are
curves          losses, the threshold curve and the times
extras          what a pipeline tells the page about the labels that were learnt from
refinement      what refinement did, image by image
provenance      in words: what was learnt from what
gallery         which images are shown, and what is told about each
pictures        photographs and label layers as data URIs
figures         the charts, by plotly
page            puts all of it into the template
templates/      HTML, style and script of the page
"""

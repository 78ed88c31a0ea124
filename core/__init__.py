"""What every pipeline shares. Knows no method, no whole network and no command. Only modules of
``nn`` and ``training`` start Jittor when they are imported.

checkpoints    weights out of files and into networks, without running what a file holds
data           images, label maps, folders, crops, samples and batches
nn             layers with gradients, operations without, and the C++ kernels behind both
pipeline       what a pipeline is: its stages, its run folder, its table of times
scoring        metrics of label maps, and which cluster is which class
synthetic      a generated data set, to try everything without a download
training       the training loop, its optimiser, its log and its options
work           many items by many processes: claimed, recorded, resumed
arrays         arrays out of NumPy's files, which may be damaged
checksums      SHA-256 of large files, remembered
config         settings in frozen dataclasses, changed by ``section.field=value``
cuda           which CUDA Jittor can use here, if any
distributed    MPI ranks and SLURM array tasks: who am I, what is my share
download       fetches a large file, and goes on where it was cut
errors         errors that a user can mend, and how a command ends on one
files          atomic writes, JSON, names and checksums of files
kmeans         k-means and nearest centres, by faiss
log            log lines, a stage's JSONL log, the progress bar
memory         memory of this process and what the machine has left
packages       ends a command in one line where packages are missing
pictures       label colours, overlays, and sheets of pictures for people
runtime        starts Jittor, on the CPU or on a GPU; nobody else imports it
schema         the number of the form in which folders are recorded; newer ones are refused
text           durations and lists of names, as people read them
version        the version of this program
"""

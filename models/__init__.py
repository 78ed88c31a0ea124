"""Networks in Jittor, with the key names of their published checkpoints. Knows no data, no loss and
no stage; Segment Anything has a room of its own, ``sam``.

resnet      the ResNet trunks, which the networks with heads derive from
pass_net    PASS: pretraining, pixel attention, the plain segmenter
upernet     the UPerNet segmenter on a ResNet
classifier  which classes an image shows, and its class activation maps
"""

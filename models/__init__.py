"""Jittor networks: ResNet trunks, the PASS heads and the UPerNet segmenter."""

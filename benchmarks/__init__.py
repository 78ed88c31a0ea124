"""Time and memory of this project beside the official PyTorch code."""

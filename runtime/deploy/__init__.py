"""Bundles for servers that others keep: NVIDIA Triton and Ray Serve."""

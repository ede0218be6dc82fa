"""Bundles over HTTP: the Open Inference Protocol, images at /generate, a playground at /."""

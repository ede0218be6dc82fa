"""What is measured on a GPU, ready before there is one: see run.py."""

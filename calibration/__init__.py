"""Fits of numbers in a Plan, and the metrics they are judged by. Import the modules: iia, classifier, metrics."""

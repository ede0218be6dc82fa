"""Fits of numbers in a Plan, and the metrics they are evaluated by. Import the modules: iia, classifier, metrics."""

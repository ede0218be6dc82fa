"""Fits of numbers in a Plan, searches of guidance, and ranges for eight bits. Import the modules: calibrate, iia, interval."""

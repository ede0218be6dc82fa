"""What to ship: samplers of a bundle side by side, the one that holds given limits, and a page that shows it."""

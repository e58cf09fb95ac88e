"""The report as one HTML file, or as a live page."""

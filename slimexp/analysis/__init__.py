"""Records become points, sections and fronts, and those tables and plots."""

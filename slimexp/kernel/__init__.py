"""Products of packed layers, and the measurement that chooses among them."""

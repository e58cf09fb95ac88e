"""What training text shows of layers' inputs and of a model's answers."""

"""Text that a model writes for a student to learn on: the teacher once before training, or the student in it."""

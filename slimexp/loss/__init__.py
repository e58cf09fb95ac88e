"""What a student learns from: cross-entropy, divergences, hidden states, relations."""

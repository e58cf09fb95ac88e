"""What a model may cost: parameters, megabytes or milliseconds."""

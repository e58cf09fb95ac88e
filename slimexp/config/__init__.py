"""The schema of a configuration, and its checks before anything is loaded."""

"""The machine around a command: terminal, hub, git's working copy, optional packages."""

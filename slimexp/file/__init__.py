"""Reading what others wrote within bounds, and writing what is whole at every moment."""

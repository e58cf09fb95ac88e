"""Where trials run: processes of this machine, Ray, or jobs of a cluster."""

"""DRIVE: the conductor, and the places that can run stages."""

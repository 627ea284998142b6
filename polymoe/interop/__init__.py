"""One file for each outside format or framework."""

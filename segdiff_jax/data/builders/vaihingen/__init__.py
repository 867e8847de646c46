"""Buildings of Vaihingen."""

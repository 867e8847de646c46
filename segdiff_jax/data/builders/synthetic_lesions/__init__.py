"""Drawn dermoscopy-like pictures with exact masks."""

"""The images and masks of a user."""

"""Plain data sets: images and masks that are files in folders."""

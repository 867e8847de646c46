"""Single objects of Cityscapes."""

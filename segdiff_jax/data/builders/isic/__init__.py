"""The ISIC challenges: lesion segmentation."""

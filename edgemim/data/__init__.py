"""Folders of images, their keyed order and their transforms."""

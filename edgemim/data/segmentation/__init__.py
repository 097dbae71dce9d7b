"""Images with a class for each pixel: layouts of published sets, masks, crops and batches."""

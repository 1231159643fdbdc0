"""Images: data sets, folders and archives, decoding, augmentation."""

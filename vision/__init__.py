"""Images: models as plain linen modules, data sets, augmentation, the classification task."""

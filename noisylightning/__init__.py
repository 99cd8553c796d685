"""Train classifiers on wrong labels: loss correction in PyTorch Lightning."""

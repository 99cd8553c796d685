"""Predictions of a network over a data set: collected once, in order, nothing twice, on one process or many."""

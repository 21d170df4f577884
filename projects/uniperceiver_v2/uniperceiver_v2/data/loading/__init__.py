"""Loaders: batches for training and evaluation."""

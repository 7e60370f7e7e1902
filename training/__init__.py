"""Trains the classifier of digits, and exports Keras models. Servers read its folders."""

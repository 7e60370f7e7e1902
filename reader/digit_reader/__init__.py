"""Reads handwritten numbers on pages, with a classifier of digits.

from digit_reader import read_numbers
from digit_classifier import Classifier
with Classifier.pretrained() as classifier:  # or Classifier.connect("127.0.0.1:50051")
numbers = read_numbers("form.png", classifier)
"""

from digit_reader.facts import Box, Field, FoundDigit, Number
from digit_reader.reader import read_numbers

__all__ = ["Box", "Field", "FoundDigit", "Number", "read_numbers"]

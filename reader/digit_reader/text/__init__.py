"""From the rows of a page to its numbers: marks, blanks, letters, and which way it lies."""

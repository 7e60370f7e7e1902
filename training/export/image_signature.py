"""The shape of a model's images, and how pictures become its input."""

from dataclasses import dataclass

import numpy as np

from training.errors import UnusableInput

DIGIT_LABELS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSignature:
    """A model's input and output."""

    input_shape: tuple[int, ...]
    """Shape of one image, such as (28, 28)."""
    dtype: str = "uint8"
    """Type of a pixel."""
    classes: int
    """The number of classes."""
    labels: tuple[str, ...]
    """A text for each class."""

    @property
    def pixels(self) -> int:
        """The number of pixels of an image."""
        return int(np.prod(self.input_shape))

    def preprocessing(
        self, resize: str | None = None, *, invert: bool = False
    ) -> dict[str, object]:
        """Return how pictures become its images, as in the manifest; empty if they can't.

        Args:
            resize: None for "digits" of 28 x 28 in grey in the classes 0 to 9, else "stretch".
            invert: whether pictures that are mostly light are inverted first.

        Raises:
            UnusableInput: an option doesn't fit the shape of the images.
        """
        shape = self.input_shape if len(self.input_shape) == 3 else (*self.input_shape, 1)
        is_digit = shape == (28, 28, 1)
        if len(shape) != 3 or shape[2] not in (1, 3):
            if resize or invert:
                raise UnusableInput(f"--resize and --invert are of pictures, not of {shape[:-1]}")
            return {}
        if resize == "digits" and not is_digit:
            raise UnusableInput(f"--resize digits is of 28 x 28 in grey, not of {shape}")
        usual = "digits" if is_digit and self.labels == DIGIT_LABELS else "stretch"
        return {
            "size": shape[:2],
            "channels": shape[2],
            "layout": "flat",
            "dtype": self.dtype,
            "resize": resize or usual,
            "invert": invert,
        }

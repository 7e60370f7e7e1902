"""The images that a training sees: MNIST, a user's own, and how they are changed. No TensorFlow."""

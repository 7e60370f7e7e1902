"""From a Keras model to a version in a repository, over the gates that compare the two."""

"""A training itself: networks, epochs, teachers, calibration, and the artifacts. No export."""

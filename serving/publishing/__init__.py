"""Versions and manifests, written: each version whole, or not at all; numpy and protobuf alone.

Writes what `model.repository` reads. Neither ONNX Runtime nor a training library may enter.
"""

"""The Open Inference Protocol: its messages to rows and back. No transport."""

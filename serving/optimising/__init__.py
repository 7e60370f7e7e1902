"""Makes a model faster: tries quantizers, gates and measures what they make, publishes the best.

    samples ─▶ source ─▶ candidates (quantizers, layers) ─▶ gate ─▶ measure ─▶ served ─▶ publishing

The quantizers are ONNX Runtime's. Only what a server loads and measures decides: no candidate is
published that its gate refuses, or that is not faster where it is served. Needs the extra optimize.
"""

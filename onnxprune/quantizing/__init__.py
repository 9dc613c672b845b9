"""Stage nine: weights and activations in eight bits, by ONNX Runtime's own quantizer, on the calibration data."""

"""What a bundle holds: ONNX files, their parity with torch, 8-bit forms, golden frames and engines."""

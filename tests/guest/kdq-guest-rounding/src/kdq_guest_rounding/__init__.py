"""A quantizer from outside."""

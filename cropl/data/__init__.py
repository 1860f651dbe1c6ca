"""Samples, images, shards and the stream: plain Python and torch, no Lightning."""

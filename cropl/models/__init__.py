"""Vision-language models behind one protocol: `transformers` objects and `nn.Module`s, no Lightning."""

"""The built-in testbed: a small rendered world, and tiny trained models that answer questions about it."""

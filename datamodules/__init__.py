"""Lightning data modules, one dataset family per file; installed as `cropl.datamodules`."""

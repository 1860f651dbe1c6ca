"""The verbs of the command line that are not Lightning's: a file each with `run(args) -> int`, imported when called."""

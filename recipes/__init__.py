"""The recipes that ship with cropl, as package data: `cropl ls` lists them, `cropl cp NAME DEST` copies one."""

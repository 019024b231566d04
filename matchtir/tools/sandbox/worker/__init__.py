"""The confined process: imports the allowed modules, gives up its rights, forks a child for each call.

It is started by exec with a bare environment and imports this package by its path, so nothing here imports
the rest of matchtir or anything but the standard library.
"""

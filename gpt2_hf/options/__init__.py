"""What the user may set: names, aliases, defaults and limits.

In: a JSON file and a command line. Out: dataclasses that are checked, or one line that names the remedy.
The other subpackages take these dataclasses as they are.
"""

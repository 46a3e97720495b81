"""`python -m rewarm ...` is `rewarm ...`."""
import os
import sys

from rewarm import program

if __name__ == "__main__":
    found = program.find()
    if found is None:
        sys.exit("there is no server in this installation: set REWARM_BINARY, or put `rewarm` on the PATH")
    os.execv(found, [found, *sys.argv[1:]])

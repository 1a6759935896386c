"""A stage's child whose work is the text `body` of its request."""

import json
import os
import sys


def main() -> None:
    request = json.load(sys.stdin)
    events = os.fdopen(int(os.environ["KDQ_EVENTS_FD"]), "w", buffering=1)

    def emit(event, **more):
        events.write(json.dumps({"event": event, **more}) + "\n")

    exec("import json, os, signal, subprocess, sys, time\n" + request["body"], {"request": request, "emit": emit})


if __name__ == "__main__":
    main()

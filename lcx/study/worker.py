"""A process that checks the members of a sweep, or runs one.

It reads one JSON request per line on stdin and answers each with one JSON line on stdout:
{"check": config} and {"run": config, "old": choice}, with resolved configs. What members print
goes to stderr.
When its driver is gone it saves and leaves, as after SIGTERM.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's: it sends SIGTERM
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print must not become an answer
    if len(sys.argv) > 1:  # the cores of this worker
        os.sched_setaffinity(0, json.loads(sys.argv[1]))
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    from lcx.study.logs import set_up

    set_up()
    while True:
        answer = _serve(json.loads(requests.get()))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os.kill(os.getpid(), signal.SIGTERM)  # training saves a checkpoint on it; all else just ends


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    import jax

    from lcx.config import from_values
    from lcx.study.preflight import check, check_data
    from lcx.study.run import run_member
    from lcx.study.status import Busy
    try:
        if "check" in request:
            config = from_values(request["check"])
            check(config)
            check_data(config)
            return {"state": "ok"}
        return run_member(from_values(request["run"]), old=request.get("old", "refuse"))
    except Busy as error:
        return {"state": "busy", "error": str(error)}
    except Exception as error:
        return {"state": "failed", "error": str(error).strip().partition("\n")[0]
                or type(error).__name__}
    finally:
        jax.clear_caches()  # programs of a finished member would only hold memory


if __name__ == "__main__":
    main()

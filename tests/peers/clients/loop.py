"""The loop of the Python clients: `run(call, URL, SECONDS, PAUSE_MS)` prints one JSON line with the results."""

import json
import time


def run(call, url, seconds, pause_ms):
    ok, failed, statuses, first_error = 0, 0, {}, None
    end = time.monotonic() + float(seconds)
    while True:
        try:
            status, body = call(url)
            statuses[status] = statuses.get(status, 0) + 1
            error = None if 200 <= status < 300 else f"status {status}: {body[:300]}"
        except Exception as caught:  # a user of the client would see any of them
            error = f"{type(caught).__name__}: {caught}"
        ok, failed = (ok + 1, failed) if error is None else (ok, failed + 1)
        first_error = first_error or error
        if time.monotonic() + float(pause_ms) / 1000 >= end:
            break
        time.sleep(float(pause_ms) / 1000)
    print(json.dumps({"ok": ok, "failed": failed, "statuses": statuses, "first_error": first_error}))

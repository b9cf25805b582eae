"""Compares Keybearer with other proxies: CPU time per request, in interleaved slices on the same core. See ../README.md."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from figures import figures, show
from measure import SCENARIOS, clean_slice
from stage import HERE, Failed, Stage

ROOT = HERE.parent.parent
DIRT_MAX = 0.08
REPEATS_MAX = 3


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated by a signal"))
    cores = sorted(os.sched_getaffinity(0))
    load_core, *proxy_cores = cores if len(cores) > options.workers else [None]
    proxy_cores = ",".join(map(str, proxy_cores[-options.workers:]))
    binary = keybearer_binary(options)
    with Stage(options.workers, proxy_cores, str(load_core) if proxy_cores else "") as stage:
        stage.prepare()
        makers = {"keybearer": lambda: stage.keybearer("keybearer", binary), "nginx": stage.nginx, "haproxy": stage.haproxy}
        proxies = [makers[name]() for name in dict.fromkeys(["keybearer", *options.peers.split(",")]) if name]
        if options.baseline:
            proxies.append(stage.keybearer("baseline", options.baseline.resolve()))
        for proxy in proxies:
            stage.check(proxy)
        rounds = measure(stage, proxies, options)
    table = figures(rounds, [proxy.name for proxy in proxies], "keybearer")
    show(table, "keybearer")
    if options.json:
        options.json.write_text(json.dumps({**setting(options, binary, proxy_cores), "figures": table, "rounds": rounds}, indent=1))


def arguments():
    parser = argparse.ArgumentParser(prog="benches/compare/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of everything, to check correctness; the timings are meaningless")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=1, help="length of a slice")
    parser.add_argument("--workers", type=int, default=1, help="worker threads or processes of each proxy")
    parser.add_argument("--rate", type=int, default=3200, help="requests per second of the paced load")
    parser.add_argument("--only", default="", help="run only scenarios whose name contains this")
    parser.add_argument("--peers", default="nginx,haproxy")
    parser.add_argument("--binary", type=Path, help="keybearer binary; default: a build of the profile `dist`, or `release` with --quick")
    parser.add_argument("--baseline", type=Path, help="another keybearer binary to measure alongside the first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every slice to FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    return options


def keybearer_binary(options):
    if options.binary:
        return options.binary.resolve()
    profile = "release" if options.quick else "dist"
    subprocess.run(["cargo", "build", "--locked", "--profile", profile, "--bin", "keybearer"], cwd=ROOT, check=True)
    return ROOT / "target" / profile / "keybearer"


def measure(stage, proxies, options):
    rounds = []
    for scenario in (scenario for scenario in SCENARIOS if options.only in scenario.name):
        if not options.quick:
            # Warm up: open connections and fill pools before measuring.
            for proxy in proxies:
                clean_slice(stage, scenario, proxy, options.seconds, options.rate, 1.0, 0)
        for number in range(options.rounds):
            order = proxies[number % len(proxies):] + proxies[:number % len(proxies)]
            repeats = 0 if options.quick else REPEATS_MAX
            measure_proxy = lambda proxy: clean_slice(stage, scenario, proxy, options.seconds, options.rate, DIRT_MAX, repeats)
            rounds.append({proxy.name: measure_proxy(proxy) for proxy in order})
    if not rounds:
        raise Failed(f"no scenario name contains {options.only!r}")
    return rounds


def setting(options, binary, proxy_cores):
    def first_line(*command):
        path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin") or command[0]
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True)
        return (done.stdout or done.stderr).splitlines()[0]

    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "workers": options.workers, "cores": os.cpu_count(),
        "pinned": proxy_cores or None, "kernel": os.uname().release, "keybearer": first_line(str(binary), "version"),
        "nginx": first_line("nginx", "-v"), "haproxy": first_line("haproxy", "-v"), "wrk": first_line("wrk", "-v"),
    }


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"benches/compare: {failure}")

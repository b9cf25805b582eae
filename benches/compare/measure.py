"""Measures one slice: load on one proxy, its CPU time from /proc, and the load of other processes on the cores."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stage import HEADERS, HERE, Failed

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Scenario:
    """A path through the proxies, under a load."""

    name: str
    path: str
    connections: int = 64
    absolute: bool = False
    paced: bool = False


SCENARIOS = [
    Scenario("1 KiB", "/plain/1k"),
    Scenario("1 KiB, paced", "/plain/1k", paced=True),
    Scenario("1 KiB, absolute form", "/plain/1k", absolute=True),
    Scenario("64 KiB", "/plain/64k"),
    Scenario("TLS upstream, 1 KiB", "/tls/1k"),
    Scenario("TLS upstream, 64 KiB", "/tls/64k"),
]


def cpu_seconds(pids):
    """CPU time of each thread, in seconds: /proc/PID/task/TID/schedstat counts nanoseconds, `stat` only ticks of 10 ms."""
    spent = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                spent[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
            except OSError:
                continue
    return spent


def core_seconds(cores):
    """Busy and stolen seconds of some cores, from /proc/stat."""
    wanted = {f"cpu{core}" for core in cores}
    busy = steal = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            steal += stolen
    return busy / TICKS, steal / TICKS


def slice_of(stage, scenario, proxy, seconds, rate):
    """Loads `proxy` for some seconds. An error aborts the comparison."""
    cores = sorted(map(int, stage.proxy_cores.split(","))) if stage.proxy_cores else list(range(os.cpu_count()))
    pids = proxy.pids()
    before, (busy, steal) = cpu_seconds(pids), core_seconds(cores)
    load = run_load(stage, scenario, proxy, seconds, rate)
    after, (busy_after, steal_after) = cpu_seconds(pids), core_seconds(cores)
    cpu = sum(spent - before.get(task, 0.0) for task, spent in after.items())
    if load["errors"] or not load["requests"]:
        raise Failed(f"{proxy.name}, {scenario.name}: {load}; {proxy.output()}")
    wall = load["seconds"] * len(cores)
    foreign = max(0.0, busy_after - busy - cpu) / wall if stage.proxy_cores else 0.0
    return {
        "proxy": proxy.name, "scenario": scenario.name, "cpu_us": 1e6 * cpu / load["requests"],
        "rps": load["requests"] / load["seconds"], "p50_ms": load["p50_ms"], "p99_ms": load["p99_ms"],
        "busy": cpu / wall, "foreign": foreign, "steal": (steal_after - steal) / wall,
    }


def run_load(stage, scenario, proxy, seconds, rate):
    target = stage.absolute(scenario.path) if scenario.absolute else scenario.path
    headers = [f"{name}: {value}" for name, value in {"Host": stage.host_of(target), **HEADERS}.items()]
    if scenario.paced:
        command = [sys.executable, HERE / "paced.py", "--port", proxy.port, "--path", target, "--rate", rate,
                   "--connections", scenario.connections, "--seconds", seconds]
        command += [part for header in headers for part in ("--header", header)]
    else:
        command = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "-s", HERE / "report.lua"]
        command += [part for header in headers for part in ("-H", header)]
        command += [f"http://127.0.0.1:{proxy.port}{scenario.path}", "--", target]
    pin = ["taskset", "-c", stage.load_cores] if stage.load_cores else []
    done = subprocess.run([*pin, *map(str, command)], capture_output=True, text=True, timeout=seconds + 30)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(f"{proxy.name}, {scenario.name}: the load failed: {done.stderr or done.stdout}")
    return json.loads(lines[-1])


def clean_slice(stage, scenario, proxy, seconds, rate, dirt_max, repeats_max):
    """Repeats a slice until the load of other processes is low enough; returns the cleanest one."""
    best = None
    for repeat in range(repeats_max + 1):
        measured = slice_of(stage, scenario, proxy, seconds, rate)
        measured["repeats"] = repeat
        dirt = lambda one: one["foreign"] + one["steal"]
        if best is None or dirt(measured) < dirt(best):
            best = measured
        if dirt(best) <= dirt_max:
            break
    best["dirty"] = best["foreign"] + best["steal"] > dirt_max
    return best

"""Computes figures from slices: medians, best slices, and ratios within a round."""

from statistics import median


def figures(rounds, names, subject):
    """CPU time, ratio to the subject's, and latency for each scenario and proxy. `rounds` has a dict {proxy: slice} per round."""
    table = []
    for scenario in dict.fromkeys(measured["scenario"] for one in rounds for measured in one.values()):
        mine = [one for one in rounds if next(iter(one.values()))["scenario"] == scenario]
        for name in names:
            slices = [one[name] for one in mine]
            ratios = [one[subject]["cpu_us"] / one[name]["cpu_us"] for one in mine]
            best = min(one["cpu_us"] for one in slices)
            table.append({
                "scenario": scenario, "proxy": name, "rounds": len(slices),
                "cpu_us_median": median(one["cpu_us"] for one in slices), "cpu_us_best": best,
                "ratio_median": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
                "ratio_best": min(one[subject]["cpu_us"] for one in mine) / best,
                "rps_median": median(one["rps"] for one in slices),
                "p50_ms_median": median(one["p50_ms"] for one in slices),
                "p99_ms_median": median(one["p99_ms"] for one in slices),
                "p99_ms_worst": max(one["p99_ms"] for one in slices),
                "dirty": sum(one["dirty"] for one in slices),
                "foreign_median": median(one["foreign"] for one in slices),
                "steal_median": median(one["steal"] for one in slices),
            })
    return table


def show(table, subject):
    """Prints the table."""
    titles = ["proxy", "CPU us/rq median", "best", f"{subject}/it median", "min-max", "of best", "p50 ms", "p99 ms", "worst p99", "dirty"]
    scenario = None
    for row in table:
        if row["scenario"] != scenario:
            scenario = row["scenario"]
            print(f"\n{scenario} ({row['rounds']} rounds)")
            print("".join(f"{title:>{width(title)}}" for title in titles))
        ratio = row["proxy"] != subject
        cells = [
            row["proxy"], f"{row['cpu_us_median']:.1f}", f"{row['cpu_us_best']:.1f}",
            f"{row['ratio_median']:.2f}" if ratio else "",
            f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}" if ratio else "",
            f"{row['ratio_best']:.2f}" if ratio else "",
            f"{row['p50_ms_median']:.1f}", f"{row['p99_ms_median']:.1f}", f"{row['p99_ms_worst']:.1f}", str(row["dirty"]),
        ]
        print("".join(f"{cell:>{width(title)}}" for title, cell in zip(titles, cells)))


def width(title):
    return max(len(title), 9) + 2

"""What grows: very large studies and objects, all processes busy at once, and a journal of years."""

from benchmarks import big_journal, busy, large
from benchmarks.machine import need_disk
from benchmarks.report import Report
from benchmarks.rig import Options, scratch

GB = 10**9
DISK, QUICK_DISK = 12 * GB, 4 * GB

FULL_LARGE = large.Sizes(
    slices=3000, slices_rounds=5, multiframe_bytes=1200 * 10**6, multiframe_rounds=3, alone_s=8.0, raw_s=12.0
)
QUICK_LARGE = large.Sizes(
    slices=200, slices_rounds=2, multiframe_bytes=200 * 10**6, multiframe_rounds=1, alone_s=1.0, raw_s=1.0
)
FULL_BUSY = busy.Sizes(rounds=5, studies=4, alone_s=6.0)
QUICK_BUSY = busy.Sizes(rounds=1, studies=1, alone_s=1.5)
FULL_JOURNAL = big_journal.Sizes(instances=1_000_000, owed=200_000)
QUICK_JOURNAL = big_journal.Sizes(instances=30_000, owed=6_000)


def run(options: Options) -> Report:
    need_disk(options.temp, QUICK_DISK if options.quick else DISK)
    report = Report()
    with scratch(options) as folder:
        large.measure(report, QUICK_LARGE if options.quick else FULL_LARGE, folder)
    with scratch(options) as folder:
        busy.measure(report, QUICK_BUSY if options.quick else FULL_BUSY, options.data, folder)
    with scratch(options) as folder:
        big_journal.measure(report, QUICK_JOURNAL if options.quick else FULL_JOURNAL, folder)
    report.notes.append("the large objects come as fast as 1 Gbit/s Ethernet carries them; all senders share our cores")
    if options.quick:
        report.notes.append("--quick: smaller sizes and few samples; the goals are meant for the full run")
    return report

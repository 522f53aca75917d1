"""
In the guest: sample every meter while `power play` shows a known power; both go to standard output, as one JSON object.

``watch_power.py FOLDER TRACE SECONDS RAIL RATE_HZ``: FOLDER holds `devices`; nothing but the standard library is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

folder, trace, seconds, rail, rate_hz = sys.argv[1:]
sys.path.insert(0, folder)

from devices.meters.find import find  # noqa: E402
from devices.protocol import sampling  # noqa: E402
from devices.protocol.sampling import Sampler, rails  # noqa: E402

sampling.MOST_CPU = 1.0  # an emulated core needs ten times as long for a reading; that is not what is tested

meters, unreadable = find()
samples: list = []
failed: list = []
sampler = Sampler(meters, float(rate_hz), samples.extend, failed.append)
time.sleep(0.2)  # the power that was there before
log = f"{folder}/truth"
subprocess.run(["/usr/local/sbin/power", "play", trace, log, seconds, rail], check=True)
sampler.stop()
with open(log) as truth:
    shown = [line.split() for line in truth]
json.dump(
    {
        "rails": [rail.describe() for rail in rails(meters)],
        "unreadable": [vars(meter) for meter in unreadable],
        "failed": failed,
        "samples": [[sample.t_ns, sample.rail, sample.value] for sample in samples],
        "truth": [[int(t_ns), float(mw)] for t_ns, mw in shown],
        "stats": sampler.stats(),
    },
    sys.stdout,
)

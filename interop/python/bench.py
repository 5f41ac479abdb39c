#!/usr/bin/env python3
"""Items per second of a batch through the client, beside the bare stub, in one run:

    python bench.py SITE telegrams.jsonl [ITEMS [ROUNDS]]

The stub is given a message that was packed before, and its answer is not taken apart.
"""

import json
import pathlib
import statistics
import sys
import time

from ami_kms import Item, Kms, pack, unpack


def main(site, telegrams, count=10_000, rounds=7):
    site = pathlib.Path(site)
    lines = [json.loads(line) for line in pathlib.Path(telegrams).read_text().splitlines() if line]
    every = [Item(bytes.fromhex(line["apdu"]), meter_id=line.get("meter", "")) for line in lines]
    items = [every[index % len(every)] for index in range(count)]
    certificates = site / "certificates"
    with Kms.connect(
        f"localhost:{(site / 'port').read_text().strip()}",
        ca=certificates / "ca.pem",
        certificate=certificates / "hes-1.pem",
        private_key=certificates / "hes-1.key",
        deadline_s=120.0,
    ) as kms:
        message, stub = pack(items), kms._ciphering.DecryptBatch
        answer = stub(message, timeout=120)
        through_stub, through_client = [], []
        # In turn, so that whatever else the machine does falls on both.
        for _ in range(rounds):
            for ask, times in (
                (lambda: stub(message, timeout=120), through_stub),
                (lambda: kms.decrypt_batch(items), through_client),
            ):
                begun = time.perf_counter()
                ask()
                times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        unpack(answer)
        unpacking = time.perf_counter() - begun
    stub_s, client_s = statistics.median(through_stub), statistics.median(through_client)
    print(f"stub    {count / stub_s:>10.0f} items/s")
    print(f"client  {count / client_s:>10.0f} items/s, {stub_s / client_s:.2f} of the stub")
    print(f"unpack  {unpacking * 1e3:>10.1f} ms for {count} items")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:3], *(int(argument) for argument in sys.argv[3:5]))

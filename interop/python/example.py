#!/usr/bin/env python3
"""Opens telegrams from a file of JSON lines, {"apdu": "HEX", "meter": "…"}, and prints what became of
each:

    python example.py SITE telegrams.jsonl

SITE is a directory as `make dev` makes it: certificates/ca.pem, hes-1.pem, hes-1.key; port.
"""

import json
import pathlib
import sys

from ami_kms import Item, Kms, KmsError


def main(site, telegrams):
    site = pathlib.Path(site)
    lines = [json.loads(line) for line in pathlib.Path(telegrams).read_text().splitlines() if line]
    items = [Item(bytes.fromhex(line["apdu"]), meter_id=line.get("meter", "")) for line in lines]
    port = (site / "port").read_text().strip()
    certificates = site / "certificates"
    with Kms.connect(
        f"localhost:{port}",
        ca=certificates / "ca.pem",
        certificate=certificates / "hes-1.pem",
        private_key=certificates / "hes-1.key",
    ) as kms:
        try:
            for line, opened in zip(lines, kms.decrypt_batch(items), strict=True):
                print(line.get("id", "-"), opened.verdict, opened.plaintext.hex().upper(), opened.reason)
        except KmsError as error:
            sys.exit(f"{error} (try again after {error.retry_after_s} s)" if error.retry_after_s else str(error))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

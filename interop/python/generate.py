#!/usr/bin/env python3
"""Makes the Python stubs of `ami.kms.v1` out of proto/, into generated/ beside this file."""

import pathlib
import shutil
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
# In the sources; in the installed documentation they lie at the same place.
PROTO = HERE.parent.parent / "proto"
GENERATED = HERE / "generated"


def main():
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("ami/kms/v1/*.proto"))
    if not files:
        sys.exit(f"no .proto files in {PROTO}")
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{well_known}",
            f"--python_out={GENERATED}",
            f"--pyi_out={GENERATED}",
            f"--grpc_python_out={GENERATED}",
            *files,
        ]
    )
    print(f"{len(files)} files of {PROTO.name}/ -> {GENERATED.name}/")
    return code


if __name__ == "__main__":
    sys.exit(main())

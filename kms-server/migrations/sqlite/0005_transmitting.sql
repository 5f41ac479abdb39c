-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;

-- One row while a backup is restored (1), and from then on, or from a failover that lost its tail, until this site was
-- promoted above every epoch that is known (2): `kms_core::site::restored`. The domain's signature is over it.
CREATE TABLE restore (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    state     INTEGER NOT NULL CHECK (state IN (1, 2)),
    body      BLOB    NOT NULL,
    signature BLOB    CHECK (signature IS NULL OR length(signature) = 64)
) STRICT;

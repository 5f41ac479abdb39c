-- Counters, what a site knows of its peer, and what is kept of both: as in SQLite.

UPDATE schema_version SET version = 5;

-- One row while a backup is restored (1), and from then on, or from a failover that lost its tail, until this site was
-- promoted above every epoch that is known (2): `kms_core::site::restored`. The domain's signature is over it.
CREATE TABLE restore (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    state     bigint  NOT NULL CHECK (state IN (1, 2)),
    body      bytea   NOT NULL,
    signature bytea   CHECK (signature IS NULL OR length(signature) = 64)
);

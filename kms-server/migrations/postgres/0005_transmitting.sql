-- Counters, what a site knows of its peer, and what is kept of both: as in SQLite.

UPDATE schema_version SET version = 5;

CREATE TABLE papers (
    kind      bigint NOT NULL CHECK (kind IN (1, 2)),
    site      text   NOT NULL,
    epoch     bigint NOT NULL,
    number    bigint NOT NULL,
    body      bytea  NOT NULL,
    signature bytea  NOT NULL CHECK (length(signature) = 64),
    signer    bytea  NOT NULL CHECK (length(signer) = 32),
    PRIMARY KEY (kind, site)
);

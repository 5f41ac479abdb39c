-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;

-- Signed papers about the two sites, the newest of each kind: reports of readiness (1), and the head tables
-- that the other site has shown (2).
CREATE TABLE papers (
    kind      INTEGER NOT NULL CHECK (kind IN (1, 2)),
    site      TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    body      BLOB    NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64),
    signer    BLOB    NOT NULL CHECK (length(signer) = 32),
    PRIMARY KEY (kind, site)
) STRICT;

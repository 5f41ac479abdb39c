-- The audit log: one hash chain a node, and its ends as the token signed them.

PRAGMA user_version = 2;

-- Where each chain ends. An event is written only behind the end that stands here.
CREATE TABLE audit_chains (
    node     BLOB    NOT NULL PRIMARY KEY CHECK (length(node) = 16),
    sequence INTEGER NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_events (
    node     BLOB    NOT NULL REFERENCES audit_chains (node),
    sequence INTEGER NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32),
    body     BLOB    NOT NULL,
    PRIMARY KEY (node, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_checkpoints (
    node      BLOB    NOT NULL,
    sequence  INTEGER NOT NULL,
    hash      BLOB    NOT NULL CHECK (length(hash) = 32),
    at_ms     INTEGER NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (node, sequence)
) STRICT, WITHOUT ROWID;

-- The audit log: one hash chain a node, and its ends as the token signed them.

UPDATE schema_version SET version = 2;

-- Where each chain ends. An event is written only behind the end that stands here.
CREATE TABLE audit_chains (
    node     bytea  PRIMARY KEY CHECK (length(node) = 16),
    sequence bigint NOT NULL,
    hash     bytea  NOT NULL CHECK (length(hash) = 32)
) WITH (fillfactor = 50);

CREATE TABLE audit_events (
    node     bytea  NOT NULL REFERENCES audit_chains (node),
    sequence bigint NOT NULL,
    hash     bytea  NOT NULL CHECK (length(hash) = 32),
    body     bytea  NOT NULL,
    PRIMARY KEY (node, sequence)
);

CREATE TABLE audit_checkpoints (
    node      bytea  NOT NULL,
    sequence  bigint NOT NULL,
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    at_ms     bigint NOT NULL,
    signature bytea  NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (node, sequence)
);

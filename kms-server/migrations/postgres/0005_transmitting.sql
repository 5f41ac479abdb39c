-- Counters, what a site knows of its peer, and what is kept of both: as in SQLite.

UPDATE schema_version SET version = 5;

CREATE TABLE counter_marks (
    block          bigint NOT NULL PRIMARY KEY,
    epoch          bigint NOT NULL,
    reserved       bigint NOT NULL,
    holder         bytea  CHECK (length(holder) = 16),
    term           bigint NOT NULL,
    secret_version bigint NOT NULL,
    mac            bytea  NOT NULL CHECK (length(mac) = 16)
);

CREATE TABLE witnessed_marks (
    site     text   NOT NULL,
    block    bigint NOT NULL,
    epoch    bigint NOT NULL,
    reserved bigint NOT NULL,
    PRIMARY KEY (site, block)
);

-- Receive floors: below which counter a message of a line was seen before, as one node saw it. Soft state of this
-- site, in no record; `mac` is under the block's `local` key. Of one line, the nodes' floors merge by maximum.
CREATE TABLE receive_floors (
    block       bigint NOT NULL,
    fingerprint bytea  NOT NULL CHECK (length(fingerprint) = 16),
    originator  bytea  NOT NULL CHECK (length(originator) = 8),
    node        bytea  NOT NULL CHECK (length(node) = 16),
    at_ms       bigint NOT NULL,
    body        bytea  NOT NULL CHECK (length(body) = 16),
    mac         bytea  NOT NULL CHECK (length(mac) = 16),
    PRIMARY KEY (block, fingerprint, originator, node)
);
CREATE INDEX receive_floors_written ON receive_floors (at_ms, block, fingerprint, originator, node);

-- Whether a node had stored all of its floors when it ended.
CREATE TABLE floor_runs (
    node  bytea   PRIMARY KEY CHECK (length(node) = 16),
    at_ms bigint  NOT NULL,
    ended boolean NOT NULL
);

-- What was set aside, named by its MAC too: a site that was rolled back may write two records at one place. Who decided,
-- and when.
ALTER TABLE divergence
    DROP CONSTRAINT divergence_pkey,
    ADD PRIMARY KEY (block, key, epoch, sequence, mac),
    ADD COLUMN decided_ms bigint,
    ADD COLUMN decided_by text;
CREATE INDEX divergence_undecided ON divergence (block) WHERE resolution IS NULL;

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

-- One row while a backup is restored (1), and from then on, or from a failover that lost its tail, until this site was
-- promoted above every epoch that is known (2): `kms_core::site::restored`. The domain's signature is over it.
CREATE TABLE restore (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    state     bigint  NOT NULL CHECK (state IN (1, 2)),
    body      bytea   NOT NULL,
    signature bytea   CHECK (signature IS NULL OR length(signature) = 64)
);

-- Whether this site is a read-only replica; `even` says nothing then.
ALTER TABLE domain ADD COLUMN read_only boolean NOT NULL DEFAULT false;

-- The other site's audit chains, as this one has copied and verified them: as in SQLite.
CREATE TABLE peer_audit_chains (
    node      bytea  PRIMARY KEY CHECK (length(node) = 16),
    site      text   NOT NULL,
    sequence  bigint NOT NULL,
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    signed    bigint NOT NULL,
    broken_in bigint
);

CREATE TABLE peer_audit_events (
    node     bytea  NOT NULL REFERENCES peer_audit_chains (node),
    sequence bigint NOT NULL,
    hash     bytea  NOT NULL CHECK (length(hash) = 32),
    body     bytea  NOT NULL,
    PRIMARY KEY (node, sequence)
);

CREATE TABLE peer_audit_checkpoints (
    node      bytea  NOT NULL REFERENCES peer_audit_chains (node),
    sequence  bigint NOT NULL,
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    at_ms     bigint NOT NULL,
    signature bytea  NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (node, sequence)
);

-- The tokens of a site that has more than one, as each of them signs the list: `kms_core::site::tokens`. Each has seals of
-- its own in `block_seals`.
CREATE TABLE site_tokens (
    place     bigint PRIMARY KEY,
    body      bytea  NOT NULL,
    signature bytea  NOT NULL CHECK (length(signature) = 64)
);

-- Calls that wait for their second person, or that one has approved: as in SQLite.
CREATE TABLE approvals (
    name       bytea  PRIMARY KEY CHECK (length(name) = 32),
    number     bigint NOT NULL UNIQUE,
    expires_ms bigint NOT NULL,
    body       bytea  NOT NULL,
    signature  bytea  NOT NULL CHECK (length(signature) = 64)
);

-- The site KEKs of each token that rotates them, or did: as in SQLite.
CREATE TABLE site_keks (
    token     bytea PRIMARY KEY CHECK (length(token) = 65),
    body      bytea NOT NULL,
    signature bytea NOT NULL CHECK (length(signature) = 64)
);

-- Former site KEKs: as in SQLite.
CREATE TABLE closed_keks (
    kek_id bytea PRIMARY KEY CHECK (length(kek_id) = 16)
);

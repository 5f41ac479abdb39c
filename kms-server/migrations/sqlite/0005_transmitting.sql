-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;

-- Reservations of transmit counters: all sequences of the block below `reserved` may have been used in this epoch.
-- MACed under the block's `local` key, which names the site: `kms_core::counters::mark`. Never lowered.
CREATE TABLE counter_marks (
    block          INTEGER NOT NULL PRIMARY KEY,
    epoch          INTEGER NOT NULL,
    reserved       INTEGER NOT NULL,
    holder         BLOB    CHECK (length(holder) = 16),
    term           INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16)
) STRICT, WITHOUT ROWID;

-- What other sites told of theirs, for them to ask after: merged by maximum.
CREATE TABLE witnessed_marks (
    site     TEXT    NOT NULL,
    block    INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (site, block)
) STRICT, WITHOUT ROWID;

-- Receive floors: below which counter a message of a line was seen before, as one node saw it. Soft state of this
-- site, in no record; `mac` is under the block's `local` key. Of one line, the nodes' floors merge by maximum.
CREATE TABLE receive_floors (
    block       INTEGER NOT NULL,
    fingerprint BLOB    NOT NULL CHECK (length(fingerprint) = 16),
    originator  BLOB    NOT NULL CHECK (length(originator) = 8),
    node        BLOB    NOT NULL CHECK (length(node) = 16),
    at_ms       INTEGER NOT NULL,
    body        BLOB    NOT NULL CHECK (length(body) = 16),
    mac         BLOB    NOT NULL CHECK (length(mac) = 16),
    PRIMARY KEY (block, fingerprint, originator, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX receive_floors_written ON receive_floors (at_ms, block, fingerprint, originator, node);

-- Whether a node had stored all of its floors when it ended.
CREATE TABLE floor_runs (
    node  BLOB    NOT NULL PRIMARY KEY CHECK (length(node) = 16),
    at_ms INTEGER NOT NULL,
    ended INTEGER NOT NULL CHECK (ended IN (0, 1))
) STRICT, WITHOUT ROWID;

-- What was set aside, named by its MAC too: a site that was rolled back may write two records at one place. Who decided,
-- and when. SQLite can't change a primary key: the rows go over as they are.
CREATE TABLE divergence_by_mac (
    block          INTEGER NOT NULL,
    key            BLOB    NOT NULL CHECK (length(key) BETWEEN 1 AND 32),
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16),
    body           BLOB    NOT NULL,
    site           TEXT    NOT NULL,
    at_ms          INTEGER NOT NULL,
    resolution     INTEGER,
    decided_ms     INTEGER,
    decided_by     TEXT,
    PRIMARY KEY (block, key, epoch, sequence, mac)
) STRICT, WITHOUT ROWID;
INSERT INTO divergence_by_mac
    (block, key, epoch, sequence, secret_version, mac, body, site, at_ms, resolution)
    SELECT block, key, epoch, sequence, secret_version, mac, body, site, at_ms, resolution FROM divergence;
DROP TABLE divergence;
ALTER TABLE divergence_by_mac RENAME TO divergence;
CREATE INDEX divergence_undecided ON divergence (block) WHERE resolution IS NULL;

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

-- One row while a backup is restored (1), and from then on, or from a failover that lost its tail, until this site was
-- promoted above every epoch that is known (2): `kms_core::site::restored`. The domain's signature is over it.
CREATE TABLE restore (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    state     INTEGER NOT NULL CHECK (state IN (1, 2)),
    body      BLOB    NOT NULL,
    signature BLOB    CHECK (signature IS NULL OR length(signature) = 64)
) STRICT;

-- Whether this site is a read-only replica; `even` says nothing then.
ALTER TABLE domain ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1));

-- The other site's audit chains, as this one has copied and verified them: its witness, and what an auditor reads here when
-- that site is gone. `signed` is the number of the last head that was copied; `broken_in` the epoch in which the chain
-- was found cut or changed behind the copy.
CREATE TABLE peer_audit_chains (
    node      BLOB    NOT NULL PRIMARY KEY CHECK (length(node) = 16),
    site      TEXT    NOT NULL,
    sequence  INTEGER NOT NULL,
    hash      BLOB    NOT NULL CHECK (length(hash) = 32),
    signed    INTEGER NOT NULL,
    broken_in INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE peer_audit_events (
    node     BLOB    NOT NULL REFERENCES peer_audit_chains (node),
    sequence INTEGER NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32),
    body     BLOB    NOT NULL,
    PRIMARY KEY (node, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE peer_audit_checkpoints (
    node      BLOB    NOT NULL REFERENCES peer_audit_chains (node),
    sequence  INTEGER NOT NULL,
    hash      BLOB    NOT NULL CHECK (length(hash) = 32),
    at_ms     INTEGER NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (node, sequence)
) STRICT, WITHOUT ROWID;

-- The tokens of a site that has more than one, as each of them signs the list: `kms_core::site::tokens`. Each has seals of
-- its own in `block_seals`.
CREATE TABLE site_tokens (
    place     INTEGER PRIMARY KEY,
    body      BLOB    NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64)
) STRICT;

-- Calls that wait for their second person, or that one has approved: of this site, for all of its servers. The token has
-- signed each `body`; the columns beside it only find it. What was used is gone, and its use is in the audit log.
CREATE TABLE approvals (
    name       BLOB    NOT NULL PRIMARY KEY CHECK (length(name) = 32),
    number     INTEGER NOT NULL UNIQUE,
    expires_ms INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    signature  BLOB    NOT NULL CHECK (length(signature) = 64)
) STRICT, WITHOUT ROWID;

-- The site KEKs of each token that rotates them, or did: one signed row a token, `kms_core::site::keks`.
CREATE TABLE site_keks (
    token     BLOB NOT NULL PRIMARY KEY CHECK (length(token) = 65),
    body      BLOB NOT NULL,
    signature BLOB NOT NULL CHECK (length(signature) = 64)
) STRICT, WITHOUT ROWID;

-- Former site KEKs: no seal under one comes into `block_seals` any more, however late a server is.
CREATE TABLE closed_keks (
    kek_id BLOB NOT NULL PRIMARY KEY CHECK (length(kek_id) = 16)
) STRICT, WITHOUT ROWID;
